"""What happens to a job, as numbered events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias, final

from finetuned.values.common import ConfusionMatrix, Metric


class JobState(StrEnum):
    """The state of a job; SUCCEEDED, FAILED and CANCELLED are final."""

    UNKNOWN = "UNKNOWN"
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
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class JobStateReason(StrEnum):
    """Why a job is in its state; UNKNOWN means that there is nothing to add."""

    UNKNOWN = "UNKNOWN"
    USER = "USER"
    WORKER_LOST = "WORKER_LOST"
    DISK_FULL = "DISK_FULL"
    ESTIMATED = "ESTIMATED"
    """It has measured what it will take, and waits for `jobs.resume` to begin."""
    SHUTDOWN = "SHUTDOWN"
    MEMORY = "MEMORY"
    PREEMPTED = "PREEMPTED"
    ENGINE_ENDED = "ENGINE_ENDED"
    """The server's engine, whose base on a GPU the job computed with; it goes on when there is one again."""


class Severity(StrEnum):
    UNKNOWN = "UNKNOWN"
    INFO = "INFO"
    WARNING = "WARNING"


@final
@dataclass(frozen=True, slots=True)
class StateChanged:
    state: JobState
    reason: JobStateReason
    attempt: int
    """Counts from 1; rises when a lost worker's job runs again."""


@final
@dataclass(frozen=True, slots=True)
class Progress:
    phase: str
    """What is being done, for example "training"."""
    step: int
    total_steps: int
    loss: float
    """The last step's mean loss: per supervised token, or word, row or pair, as the task learns from them."""
    tokens_per_second: float
    eta_seconds: float | None
    learning_rate: float
    """The last step's, of what trains beside a head where there is both."""
    tokens: int
    """Tokens trained on so far."""


@final
@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    subject: str
    """What was evaluated: "baseline", "incumbent" or "adapter"."""
    step: int
    metrics: tuple[Metric, ...]
    confusion: ConfusionMatrix | None = None
    """Over all held-out rows; None between steps, and for tasks that give no single label."""


@final
@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    eval_loss: float | None
    """None if not measured there."""
    best: bool
    """Whether it becomes the adapter version."""


@final
@dataclass(frozen=True, slots=True)
class Notice:
    severity: Severity
    text: str


EventBody: TypeAlias = StateChanged | Progress | EvaluationFinished | Checkpoint | Notice


@final
@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event; exactly one of the last five fields is set, and `body` is that one."""

    number: int
    """Counts from 1 within a job. Those of events that are no longer kept are missing: of the progress of long jobs some
    goes."""
    time: datetime | None
    state: StateChanged | None = None
    progress: Progress | None = None
    evaluation: EvaluationFinished | None = None
    checkpoint: Checkpoint | None = None
    notice: Notice | None = None

    @property
    def body(self) -> EventBody | None:
        """None for a kind of event that this client does not know."""
        return self.state or self.progress or self.evaluation or self.checkpoint or self.notice

    @property
    def shows_estimate(self) -> bool:
        """Whether the job has stopped to show what it will take."""
        told = self.state
        return told is not None and (told.state, told.reason) == (JobState.PAUSED, JobStateReason.ESTIMATED)

    @property
    def final(self) -> bool:
        """Whether no event of this job follows."""
        return self.state is not None and self.state.state.final
