"""What jobs are made of: plain frozen values that mirror `job.proto` and are kept as JSON in the store.

A spec arrives with gaps (None) and is stored resolved: every default written back, so that the
record alone says what ran. Defaults that depend on the base or the data are chosen by
`jobs/resolve.py`; the constant ones stand here.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from finetuned_service.adapters.site_ops import Activation
from finetuned_service.vocabulary import (
    ClassWeights,
    DataReport,
    Method,
    Metric,
    Objective,
    Pooling,
    Task,
    Value,
    WeightFormat,
)


class JobState(StrEnum):
    VALIDATING = "VALIDATING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        return not NEXT_STATES[self]


NEXT_STATES: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSING, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}
    ),
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""The table of legal transitions, as in job.proto."""


class StateReason(StrEnum):
    NONE = ""
    USER = "USER"
    WORKER_LOST = "WORKER_LOST"
    DISK_FULL = "DISK_FULL"
    SHUTDOWN = "SHUTDOWN"
    MEMORY = "MEMORY"
    PREEMPTED = "PREEMPTED"


class Priority(StrEnum):
    """How soon a job is taken; of one priority, tenants take turns."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"

    @property
    def level(self) -> int:
        """0 for the lowest."""
        return list(Priority).index(self)


class Fault(StrEnum):
    USER = "USER"
    SYSTEM = "SYSTEM"


class Schedule(StrEnum):
    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    COSINE = "COSINE"


class LongRows(StrEnum):
    REJECT = "REJECT"
    TRUNCATE = "TRUNCATE"
    DROP = "DROP"


class Settings(Value):
    """What a caller writes: numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[float, Field(gt=0, le=1e9)]


class LoraSettings(Settings):
    rank: Rank = 16
    alpha: Alpha | None = None
    """Resolved to twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()
    """Module names or dotted ends of them; resolved to all linear modules of the decoder's layers."""
    rank_stabilized: bool = False
    decomposed: bool = False
    """DoRA."""
    rank_pattern: dict[str, Rank] = Field(default={}, max_length=2048)
    """Other ranks, by module name or dotted end of it; the first that fits counts."""
    alpha_pattern: dict[str, Alpha] = Field(default={}, max_length=2048)
    """Other alphas, alike."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules that train whole, by their names or dotted ends of them; outside target_modules."""


class Ia3Settings(Settings):
    target_modules: tuple[str, ...] = ()
    """Module names or dotted ends of them; resolved to keys, values and the last product of the feed-forward."""
    feedforward_modules: tuple[str, ...] | None = None
    """Those of them whose input is scaled; resolved to the feed-forward's."""


class Placement(StrEnum):
    """Where bottlenecks stand, if no modules are named."""

    HOULSBY = "HOULSBY"
    """Two a layer, each on what a sublayer returns, before it is added to the residual stream."""
    PFEIFFER = "PFEIFFER"
    """One a layer, on what it returns, the feed-forward added to the residual stream."""
    PARALLEL = "PARALLEL"
    """One a layer, beside the feed-forward, on what that reads (He et al. 2022)."""


class BottleneckSettings(Settings):
    placement: Placement = Placement.HOULSBY
    reduction_factor: float = Field(default=16.0, ge=1, le=1024)
    """Of the base's width; what is left is the bottleneck's."""
    width: int | None = Field(default=None, ge=1)
    """Resolved from the reduction factor."""
    activation: Activation = Activation.GELU
    scaling: Alpha = 1.0
    target_modules: tuple[str, ...] = ()
    """Layers and sublayers, by their names or dotted ends of them; resolved to full names."""


class LayersSettings(Settings):
    last: int | None = Field(default=None, ge=1)
    """So many layers at the end; resolved to a quarter of them where nothing is chosen."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), max_length=2048)
    """By their numbers from 0; resolved with those of `last` in it."""
    modules: tuple[str, ...] = Field(default=(), max_length=2048)
    """Further modules, by their names or dotted ends of them, with all that is in them."""


class FullSettings(Settings):
    """There is nothing to choose."""


class HeadSettings(Settings):
    pooling: Pooling | None = None
    """How a text's vectors become one; resolved to the base's own."""


class DpoSettings(Settings):
    """Of direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Reward of one nat by which an answer became likelier; more keeps the model nearer to where it began."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """How often a choice is taken to be wrong (conservative DPO, Mitchell 2023)."""


class ClassificationOptions(Settings):
    class_weights: ClassWeights | None = None
    """Resolved to BALANCED for classes of texts and images, to NONE for tags and beside `label_weights`."""
    label_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default={}, max_length=10_000)
    """Weights of the caller's own; other labels count 1."""


class ContrastiveOptions(Settings):
    scale: float = Field(default=20.0, gt=0, le=1000)
    """Of cosines, before the softmax over the batch."""


class Optimization(Settings):
    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Resolved to 3 if max_steps is not set either."""
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Resolved from epochs."""
    batch_rows: int = Field(default=8, ge=1, le=1024)
    micro_batch_rows: int | None = Field(default=None, ge=1, le=1024)
    """Resolved to batch_rows."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Resolved from the base's width."""
    schedule: Schedule = Schedule.COSINE
    warmup_fraction: float = Field(default=0.05, ge=0, le=0.5)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_interval_steps: int | None = Field(default=None, ge=1)
    """Resolved to a tenth of the steps, at least 5."""
    activation_checkpointing: bool | None = None
    """None leaves it to each attempt: it depends on the memory there and changes no bit of the result."""
    kept_checkpoints: int = Field(default=2, ge=1, le=100)
    """The newest ones; the best is kept besides."""


class DataOptions(Settings):
    holdout_fraction: float = Field(default=0.1, ge=0, le=0.5)
    max_row_tokens: int | None = Field(default=None, ge=8)
    """Resolved to the smaller of 1024 and the context."""
    long_rows: LongRows = LongRows.REJECT
    train_on_prompt: bool = False


class BaselineExample(Value):
    prompt: str
    completion: str


class Baseline(Value):
    """The prompt that the plain base gets in the evaluation and the adapter does not."""

    instruction: str = ""
    examples: tuple[BaselineExample, ...] = Field(default=(), max_length=16)


class EvaluationOptions(Settings):
    evaluations: int = Field(default=4, ge=0, le=1000)
    early_stopping_patience: int = Field(default=2, ge=0, le=1000)
    generation_rows: int = Field(default=100, ge=0, le=100_000)
    generation_max_tokens: int = Field(default=128, ge=1, le=4096)
    baseline: Baseline = Baseline()


class PromoteIf(Settings):
    alias: str
    metric: Literal[
        "",
        "exact_match",
        "loss",
        "accuracy",
        "macro_f1",
        "micro_f1",
        "entity_f1",
        "spearman",
        "pearson",
        "reward_accuracy",
        "reward_margin",
        "mrr_at_10",
        "recall_at_1",
        "recall_at_10",
    ] = "exact_match"
    """Empty is resolved to the usual one of task and objective."""
    minimum: float | None = None
    better_than_current: bool = False


class TrainSpec(Value):
    kind: Literal["train"] = "train"
    dataset: str
    eval_dataset: str = ""
    adapter: str
    base: str = ""
    task: Task = Task.TEXT_GENERATION
    method: Literal[
        Method.LORA, Method.HEAD, Method.IA3, Method.QLORA, Method.BOTTLENECK, Method.LAYERS, Method.FULL
    ] = Method.LORA
    lora: LoraSettings = LoraSettings()
    """Of LORA and QLORA."""
    head: HeadSettings = HeadSettings()
    """Of HEAD."""
    ia3: Ia3Settings = Ia3Settings()
    """Of IA3."""
    objective: Objective | None = None
    """Resolved to what the rows are for."""
    dpo: DpoSettings | None = None
    """Of DPO; resolved where that is the objective, None elsewhere."""
    classification: ClassificationOptions = ClassificationOptions()
    """Of tasks with labels."""
    contrastive: ContrastiveOptions = ContrastiveOptions()
    """Of feature extraction."""
    bottleneck: BottleneckSettings = BottleneckSettings()
    """Of BOTTLENECK."""
    layers: LayersSettings = LayersSettings()
    """Of LAYERS."""
    full: FullSettings = FullSettings()
    """Of FULL."""
    optimization: Optimization = Optimization()
    data: DataOptions = DataOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    promote_if: PromoteIf | None = None
    continue_from: str = ""
    """The version, or the diverged job, whose weights training starts with; resolved to a version's name."""


class QuantizeSpec(Settings):
    kind: Literal["quantize"] = "quantize"
    base: str = ""
    output_base_id: str
    weight_format: Literal[WeightFormat.INT8, WeightFormat.NF4]
    dataset: str = ""
    max_quality_drop: float | None = Field(default=None, ge=0)
    quantize_embeddings: bool = False


Spec = Annotated[TrainSpec | QuantizeSpec, Field(discriminator="kind")]


class Environment(Value):
    """What repeatability depends on."""

    base_digest: str
    dataset_digest: str = ""
    eval_dataset_digest: str = ""
    service_version: str
    torch_version: str = ""
    instruction_set: str = ""
    threads: int = 0
    peft_version: str = ""


class Estimate(Value):
    steps: int = 0
    tokens: int = 0
    memory_bytes: int = 0
    duration_seconds: float | None = None


class Progress(Value):
    """`phase` is one of: preparing, encoding, baseline, incumbent, reference, training, evaluating, measuring,
    quantizing, storing.
    """

    kind: Literal["progress"] = "progress"
    phase: str
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None
    learning_rate: float = 0.0
    tokens: int = 0
    step_tokens: int = 0
    """Tokens of this step of training alone, for metrics; 0 where the report tells of none."""
    step_seconds: float = 0.0
    """How long that step took."""


class Checkpoint(Value):
    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    eval_loss: float | None = None
    best: bool = False


class EvaluationFinished(Value):
    kind: Literal["evaluation"] = "evaluation"
    subject: Literal["baseline", "incumbent", "adapter"]
    step: int = 0
    metrics: tuple[Metric, ...]


class Notice(Value):
    kind: Literal["notice"] = "notice"
    severity: Literal["INFO", "WARNING"] = "INFO"
    text: str


class Overfitting(Value):
    """The held-out loss has turned: it was lowest at `best_step`, and rose."""

    kind: Literal["overfitting"] = "overfitting"
    best_step: int
    best_loss: float
    step: int
    loss: float


class StateChanged(Value):
    kind: Literal["state"] = "state"
    state: JobState
    reason: StateReason = StateReason.NONE
    attempt: int = 1


EventBody = Annotated[
    Progress | Checkpoint | EvaluationFinished | Notice | StateChanged, Field(discriminator="kind")
]


class JobEvent(Value):
    number: int
    time: datetime
    body: EventBody


class EvaluationSample(Value):
    prompt: str
    expected: str
    baseline: str = ""
    answer: str = ""
    correct: bool = False


class TrainResult(Value):
    kind: Literal["train"] = "train"
    version: str
    digest: str
    promoted: bool = False
    promotion: str = ""
    stopped_early: bool = False


class QuantizeReport(Value):
    source_bytes: int
    quantized_bytes: int
    source_perplexity: float
    quantized_perplexity: float
    mean_kl_nats: float
    top1_agreement: float
    evaluated_tokens: int
    quantized_modules: int
    kept_modules: tuple[str, ...] = ()
    source_lineage: str = ""


class QuantizeResult(Value):
    kind: Literal["quantize"] = "quantize"
    base: str
    digest: str
    report: QuantizeReport


Result = Annotated[TrainResult | QuantizeResult, Field(discriminator="kind")]


class Job(Value):
    """The durable record; `jobs/store.py` is the only writer."""

    tenant: str
    id: str
    display_name: str = ""
    state: JobState
    state_reason: StateReason = StateReason.NONE
    create_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    expire_time: datetime | None = Field(default=None, exclude=True)
    """As `JobStore` tells callers; follows from `end_time` and the settings, and is not in the record."""
    events_expire_time: datetime | None = Field(default=None, exclude=True)
    """As `expire_time`, for the job's events."""
    spec: Spec
    environment: Environment | None = None
    estimate: Estimate | None = None
    data_report: DataReport | None = None
    progress: Progress | None = None
    baseline_metrics: tuple[Metric, ...] = ()
    metrics: tuple[Metric, ...] = ()
    incumbent_metrics: tuple[Metric, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    attempt: int = 1
    priority: Priority = Priority.NORMAL
    preempting: bool = False
    """It runs, and is to make room for a job that comes first."""
    losses: int = 0
    """How often its process or its worker was lost; the other attempts do not count against it."""
    micro_batch_rows: int = 0
    """Rows that run at once since the memory had no room for as many as the spec says; 0 where it had."""
    error: dict[str, Any] | None = None
    """`FinetunedError.to_wire`."""
    fault: Fault | None = None
    result: Result | None = None
    rerun_of: str = ""
    """The TrainJob whose record this one repeats."""
    defaulted_from_base: tuple[str, ...] = ()
    """Settings of the spec that nobody had set and the base has decided; chosen again for another base."""
    last_event: int = 0
    samples: tuple[EvaluationSample, ...] = ()
    overfitting: Overfitting | None = None
    """The last time that the held-out loss turned; None while it falls."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/jobs/{self.id}" if self.id else ""
