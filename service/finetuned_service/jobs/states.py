"""The states of a job, what leads from one to another, and why."""

from __future__ import annotations

from enum import StrEnum


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
    ESTIMATED = "ESTIMATED"
    """It has measured what it will take, and waits to be told to begin."""
    SHUTDOWN = "SHUTDOWN"
    MEMORY = "MEMORY"
    PREEMPTED = "PREEMPTED"
    ENGINE_ENDED = "ENGINE_ENDED"
    """The engine whose base on a GPU it computed with; it goes on when there is one again."""


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
