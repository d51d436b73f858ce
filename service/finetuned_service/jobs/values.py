"""What jobs are made of: plain frozen values that mirror `job.proto` and are kept as JSON in the store."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from finetuned_service.jobs.events import Checkpoint, Environment, Estimate, Overfitting, Progress, Usage
from finetuned_service.jobs.specs import Spec
from finetuned_service.jobs.states import Fault, JobState, Priority, StateReason
from finetuned_service.vocabulary import (
    ConfusionMatrix,
    DataReport,
    Metric,
    Value,
)


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
    baseline_confusion: ConfusionMatrix | None = None
    confusion: ConfusionMatrix | None = None
    """As `metrics`: of the best checkpoint."""
    checkpoints: tuple[Checkpoint, ...] = ()
    attempt: int = 1
    priority: Priority = Priority.NORMAL
    preempting: bool = False
    """It runs, and is to make room for a job that comes first."""
    steps_since: float | None = None
    """When the attempt that runs has told of its first step, in seconds since the epoch: from then on a stop loses
    nothing. None before that."""
    slices_lost: int = 0
    """How often it had to make room for its turn's end before it had told of a step: each has doubled its next slice."""
    losses: int = 0
    """How often its process or its worker was lost; the other attempts do not count against it."""
    engine_ends: int = 0
    """How often the engine that lends it its base has ended under it since its last checkpoint."""
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
    usage: Usage | None = None
    """Of all attempts that have ended."""
    disk_bytes_wanted: int = 0
    """Room on the disk, beyond what must stay free, before it goes on by itself after a full disk had paused it."""
    pause_after_estimate: bool = False
    """It measures what it will take, and then waits to be told to begin."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/jobs/{self.id}" if self.id else ""
