"""Jobs: TrainJobs and Quantize runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import final

from finetuned.errors import JobFailed, Violation
from finetuned.values.common import ConfusionMatrix, LabelCount, LengthSummary, Metric
from finetuned.values.events import Checkpoint, JobState, JobStateReason, Progress
from finetuned.values.specs import QuantizeSpec, TrainSpec


class JobKind(StrEnum):
    UNKNOWN = "UNKNOWN"
    TRAIN = "TRAIN"
    QUANTIZE = "QUANTIZE"


class JobPriority(StrEnum):
    """How soon a job is taken."""

    UNKNOWN = "UNKNOWN"
    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"
    """Has others stop for it; for admins."""


class EstimateBasis(StrEnum):
    """What the figures of an estimate rest on."""

    UNKNOWN = "UNKNOWN"
    ARITHMETIC = "ARITHMETIC"
    """Sizes of the base, the adapter and the rows; of a TrainJob `memory_bytes` is the least that it needs."""
    MEASURED = "MEASURED"
    """A few steps of the job, its largest among them, on the machine that runs it."""
    EARLIER_JOB = "EARLIER_JOB"
    """What the tenant's newest job like it has taken, its time scaled by tokens."""


class Fault(StrEnum):
    """Whose an error is."""

    UNKNOWN = "UNKNOWN"
    USER = "USER"
    SYSTEM = "SYSTEM"


@final
@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed."""

    code: int
    """Canonical gRPC status code."""
    reason: str
    message: str
    metadata: Mapping[str, str]
    violations: tuple[Violation, ...]


@final
@dataclass(frozen=True, slots=True)
class Environment:
    """What repeatability depends on."""

    base_digest: str
    dataset_digest: str
    eval_dataset_digest: str
    service_version: str
    torch_version: str
    instruction_set: str
    threads: int
    peft_version: str
    compute_dtype: str
    """What products are computed in, by torch's name, such as `bfloat16`: the base's own."""
    trained_dtype: str
    """What the parameters that train, their gradients and the optimizer's state are kept in; empty of a Quantize."""


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job is expected to take, if early stopping does not end it sooner."""

    steps: int
    tokens: int
    memory_bytes: int
    """Peak of the memory that the job alone holds; 0 when unknown."""
    duration_seconds: float | None
    """How long its process runs; None when unknown."""
    basis: EstimateBasis
    runtime_memory_bytes: int
    """The part of `memory_bytes` that interpreter and libraries take."""
    base_memory_bytes: int
    """Pages of the base, which its server and all its jobs share; not in `memory_bytes`."""
    memory_budget_bytes: int
    """What `memory_bytes` may be; a job that needs more is refused."""
    device_memory_bytes: int
    """Peak of GPU memory, without the base that it shares with its server; 0 on a CPU, and when unknown."""
    device_memory_budget_bytes: int
    """What `device_memory_bytes` may be; 0 on a CPU, and where the bound is what is free when the job begins."""


@final
@dataclass(frozen=True, slots=True)
class JobUsage:
    """What a job took."""

    memory_bytes: int
    """The most that one of its attempts held alone; 0 when unknown."""
    duration_seconds: float | None
    """How long its processes ran, those of all attempts together; waiting and pauses are not in it."""
    memory_error: float | None
    """Estimated / used - 1, so 0.1 is 10% too much; None unless the job succeeded."""
    duration_error: float | None
    """Alike; None as well where early stopping ended the training."""
    device_memory_bytes: int
    """The most GPU memory that one of its attempts took; 0 on a CPU."""


@final
@dataclass(frozen=True, slots=True)
class DataReport:
    """The data of a job."""

    train_rows: int
    eval_rows: int
    train_tokens: int
    supervised_tokens: int
    """Tokens that carry loss."""
    mean_row_tokens: float
    longest_row_tokens: int
    truncated_rows: int
    dropped_rows: int
    duplicate_rows: int
    leaked_rows: int
    """Held-out rows that are also trained on."""
    similar_leaked_rows: int
    """Those that are when case, width of letters, white space and labels are left aside."""
    row_tokens: LengthSummary | None
    """Of the training rows, before any is cut."""
    train_labels: tuple[LabelCount, ...]
    """The most frequent first; empty where rows have none."""
    eval_labels: tuple[LabelCount, ...]
    imbalance_ratio: float
    """How many times the rarest label trained on the most frequent one is given; 0 without labels."""
    warnings: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class TrainResult:
    version: str
    """The new adapter version."""
    digest: str
    promoted: bool
    promotion: str
    """Why promote_if moved the alias or did not."""
    stopped_early: bool


@final
@dataclass(frozen=True, slots=True)
class QuantizeReport:
    source_bytes: int
    quantized_bytes: int
    source_perplexity: float
    quantized_perplexity: float
    mean_kl_nats: float
    """Mean KL divergence of the next-token distribution from the source's."""
    top1_agreement: float
    """How often both put the same token first, 0 to 1."""
    evaluated_tokens: int
    quantized_modules: int
    kept_modules: tuple[str, ...]
    source_lineage: str


@final
@dataclass(frozen=True, slots=True)
class QuantizeResult:
    base: str
    """The new base; empty if the quality gate failed."""
    digest: str
    report: QuantizeReport


@final
@dataclass(frozen=True, slots=True)
class EvaluationSample:
    """One held-out row with its answers."""

    prompt: str
    expected: str
    baseline: str
    answer: str
    correct: bool


@final
@dataclass(frozen=True, slots=True)
class ExportedLogs:
    """A job's figures written to a directory, for TensorBoard."""

    job: str
    directory: str
    """One run to TensorBoard."""
    files: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Overfitting:
    """A held-out loss that rises again, in the unit of `Progress.loss`."""

    best_step: int
    best_loss: float
    step: int
    loss: float


@final
@dataclass(frozen=True, slots=True)
class Job:
    """A TrainJob (`train` is set) or a Quantize run (`quantize` is set)."""

    name: str
    """`tenants/{tenant}/jobs/{job}`; empty for validate_only."""
    display_name: str
    state: JobState
    state_reason: JobStateReason
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    train: TrainSpec | None
    quantize: QuantizeSpec | None
    environment: Environment | None
    estimate: Estimate | None
    data_report: DataReport | None
    progress: Progress | None
    baseline_metrics: tuple[Metric, ...]
    """The plain base's figures on the held-out rows."""
    metrics: tuple[Metric, ...]
    """The best checkpoint's figures on the same rows."""
    incumbent_metrics: tuple[Metric, ...]
    """Those of the version that promote_if would replace."""
    checkpoints: tuple[Checkpoint, ...]
    attempt: int
    error: JobError | None
    fault: Fault
    train_result: TrainResult | None
    quantize_result: QuantizeResult | None
    last_event: int
    samples: tuple[EvaluationSample, ...]
    expire_time: datetime | None
    """When its record goes; None if it is kept, or not finished."""
    events_expire_time: datetime | None
    rerun_of: str
    """The job whose record this one repeats; empty for others."""
    overfitting: Overfitting | None
    """Where the held-out loss turned; None while it falls."""
    priority: JobPriority
    micro_batch_rows: int
    """Rows that run at once since the memory had no room for as many as the spec says; 0 where it had."""
    usage: JobUsage | None
    """What it took so far; None before an attempt has ended."""
    baseline_confusion: ConfusionMatrix | None
    """Of the plain base, over all held-out rows; None for tasks that give no single label."""
    confusion: ConfusionMatrix | None
    """Of the best checkpoint, over the same rows."""

    @property
    def kind(self) -> JobKind:
        if self.train is not None:
            return JobKind.TRAIN
        return JobKind.QUANTIZE if self.quantize is not None else JobKind.UNKNOWN

    @property
    def waits_to_begin(self) -> bool:
        """It has shown what it will take (`pause_after_estimate`), and waits to be resumed."""
        return self.state is JobState.PAUSED and self.state_reason is JobStateReason.ESTIMATED

    def check(self) -> Job:
        """This job, unless it ended without a result.

        Raises:
            JobFailed: it is FAILED or CANCELLED; with the reason, message and violations of its error.
        """
        if not self.state.final or self.state is JobState.SUCCEEDED:
            return self
        if self.error is None:
            raise JobFailed(f"{self.name} is {self.state}", job=self.name, state=self.state)
        raise JobFailed(
            f"{self.name} is {self.state}: {self.error.message}",
            job=self.name,
            state=self.state,
            reason=self.error.reason,
            metadata=self.error.metadata,
            violations=self.error.violations,
        )
