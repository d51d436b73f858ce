"""What a job tells on its way, as `job.proto` has it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.vocabulary import (
    ConfusionMatrix,
    Metric,
    Value,
)


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
    compute_dtype: str = ""
    """Of products, by torch's name."""
    trained_dtype: str = ""
    """Of what trains, its gradients and the optimizer's state; empty where nothing trains."""


class EstimateBasis(StrEnum):
    """What figures rest on."""

    UNSPECIFIED = "UNSPECIFIED"
    ARITHMETIC = "ARITHMETIC"
    EARLIER_JOB = "EARLIER_JOB"
    MEASURED = "MEASURED"


class Estimate(Value):
    """What a job is expected to take, if nothing ends it before its last step."""

    steps: int = 0
    tokens: int = 0
    memory_bytes: int = 0
    """Peak of private memory, with `runtime_memory_bytes`; 0 when unknown."""
    duration_seconds: float | None = None
    """How long its process runs."""
    basis: EstimateBasis = EstimateBasis.UNSPECIFIED
    runtime_memory_bytes: int = 0
    """Of interpreter and libraries."""
    base_memory_bytes: int = 0
    """Pages of the base's file, which are shared and not in `memory_bytes`."""
    memory_budget_bytes: int = 0
    device_memory_bytes: int = 0
    """Peak of GPU memory; 0 on a CPU, and when unknown."""
    device_memory_budget_bytes: int = 0


class Usage(Value):
    """What a job took, or a part of that: memory is the most of all parts, duration their sum."""

    kind: Literal["usage"] = "usage"
    memory_bytes: int = 0
    duration_seconds: float = 0.0
    device_memory_bytes: int = 0
    """Of a GPU."""

    def with_part(self, part: Usage) -> Usage:
        return Usage(
            memory_bytes=max(self.memory_bytes, part.memory_bytes),
            device_memory_bytes=max(self.device_memory_bytes, part.device_memory_bytes),
            duration_seconds=self.duration_seconds + part.duration_seconds,
        )


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
    confusion: ConfusionMatrix | None = None
    """Of all held-out rows, where they have one label each or one for each word."""


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
