"""Keeps a worker's lease while the worker is busy: files are checked and synced, processes wait."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from finetuned_service.errors import FinetunedError
from finetuned_service.jobs.queue import JobQueue
from finetuned_service.jobs.rows import Lease, LeaseLost
from finetuned_service.jobs.states import JobState
from finetuned_service.telemetry.logs import logger

_LOG = logger("jobs")


class LeaseKeeper:
    """Renews a lease from a thread of its own, as long as its block runs.

    A store that fails for a moment is tried again until the lease must have run out: from then on
    another worker may have the job, and this one has lost it.
    """

    def __init__(
        self, queue: JobQueue, lease: Lease, lease_seconds: float, renew_seconds: float = 1.0
    ) -> None:
        """`lease` was claimed just now, for `lease_seconds`, and is renewed every `renew_seconds` or sooner."""
        self.lease = lease
        self._queue = queue
        self._lease_seconds = lease_seconds
        self._interval_seconds = min(renew_seconds, lease_seconds / 4)
        self._good_until = time.monotonic() + lease_seconds
        self._taken = threading.Event()
        self._cancelling = threading.Event()
        self._pausing = threading.Event()
        self._preempting = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    @property
    def cancelling(self) -> bool:
        """The job is to be stopped."""
        return self._cancelling.is_set()

    @property
    def pausing(self) -> bool:
        """The job is to write a checkpoint and be paused."""
        return self._pausing.is_set()

    @property
    def preempting(self) -> bool:
        """The job is to write a checkpoint and make room for another."""
        return self._preempting.is_set()

    @property
    def lost(self) -> bool:
        """The job is, or may be, another worker's."""
        return self._taken.is_set() or time.monotonic() >= self._good_until

    def refuse_lost(self) -> None:
        """Say so if the lease is lost.

        Raises:
            LeaseLost: it is.
        """
        if self.lost:
            raise LeaseLost(self.lease.job_id)

    def _keep(self) -> None:
        while not self._closed.wait(self._interval_seconds):
            asked = time.monotonic()
            try:
                job = self._queue.renew(self.lease, self._lease_seconds)
            except LeaseLost:
                self._taken.set()
                return
            except FinetunedError as error:
                _LOG.warning("lease_not_renewed", job=self.lease.job_id, message=error.message)
                continue
            self._good_until = asked + self._lease_seconds
            if job.state is JobState.CANCELLING:
                self._cancelling.set()
            if job.state is JobState.PAUSING:
                self._pausing.set()
            if job.preempting:
                self._preempting.set()
