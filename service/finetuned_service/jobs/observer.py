"""What a worker tells of its jobs while it runs them, to whoever counts. The runner knows no metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finetuned_service.jobs.record import JobReport
from finetuned_service.jobs.values import Job


class JobObserver(Protocol):
    """Told from the threads of all jobs at once; must neither wait nor raise."""

    def claimed(self, job: Job) -> None:
        """An attempt at a job begins."""
        ...

    def process_started(self, job: Job, pid: int) -> None: ...

    def process_ended(self, job: Job, pid: int) -> None: ...

    def reported(self, job: Job, reports: Sequence[JobReport]) -> None:
        """The reports are in the store; `job` is the record as it was claimed."""
        ...

    def left(self, job: Job) -> None:
        """This worker let the job go, or took it from one that was lost: it is QUEUED, PAUSED or final."""
        ...
