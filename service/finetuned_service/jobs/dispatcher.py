"""Takes queued jobs from the store and has each run in a process of its own.

It may live in the server or in a worker of its own: all it shares with others is the store and the
data directory.
"""

from __future__ import annotations

import threading
import time

from finetuned_service.jobs.assignment import Assignments
from finetuned_service.jobs.dispatcher_settings import DispatcherSettings
from finetuned_service.jobs.endings import MAX_ATTEMPTS
from finetuned_service.jobs.observer import JobObserver
from finetuned_service.jobs.publish import Publisher
from finetuned_service.jobs.queue import JobQueue
from finetuned_service.jobs.room import Room
from finetuned_service.jobs.runner import JobRunner, remove_leftovers
from finetuned_service.telemetry.logs import logger

_LONGEST_PAUSE_SECONDS = 5.0
"""Between rounds while the store does not answer."""
_SWEEP_SECONDS = 600.0
_ROOM_ROUNDS = 20
"""Jobs that wait for room on the disk are looked at in every so many rounds."""
_LOG = logger("jobs")


class Dispatcher:
    """Runs up to `max_running` jobs, each watched by a thread."""

    def __init__(
        self,
        settings: DispatcherSettings,
        queue: JobQueue,
        assignments: Assignments,
        publisher: Publisher,
        observer: JobObserver,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._assignments = assignments
        self._stopping = threading.Event()
        self._observer = observer
        self._runner = JobRunner(settings, queue, assignments, publisher, observer, self._stopping)
        self._watchers: list[threading.Thread] = []
        self._sweep_at = 0.0
        self._room = Room(settings.directory, settings.min_free_disk_bytes)
        self._rounds = 0
        self._thread = threading.Thread(target=self._loop, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin to take jobs; those that this worker held before a crash are given back at once."""
        self._settings.directory.mkdir(parents=True, exist_ok=True)
        self._queue.expire(self._settings.owner)
        self._thread.start()

    def stop(self) -> None:
        """Ask running job processes to write a checkpoint, give their jobs back, return when done."""
        self._stopping.set()
        self._thread.join()
        for watcher in self._watchers:
            watcher.join()

    def _loop(self) -> None:
        pause = self._settings.poll_seconds
        while not self._stopping.wait(pause):
            try:
                self._round()
                pause = self._settings.poll_seconds
            except Exception:  # noqa: BLE001 - a store that fails for a moment must not end the worker
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)
                _LOG.exception("dispatcher_round_failed", next_round_seconds=pause)

    def _round(self) -> None:
        self._watchers = [watcher for watcher in self._watchers if watcher.is_alive()]
        for job in self._queue.recover(MAX_ATTEMPTS):
            self._observer.left(job)
        self._rounds += 1
        if self._rounds % _ROOM_ROUNDS == 0:
            self._queue.resume(self._room)
        while len(self._watchers) < self._settings.max_running and self._take_one():
            pass
        if len(self._watchers) == self._settings.max_running:
            self._queue.preempt(
                patience_seconds=self._settings.patience_seconds, slice_seconds=self._settings.slice_seconds
            )
        if time.monotonic() >= self._sweep_at:
            self._sweep()
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS

    def _take_one(self) -> bool:
        if self._assignments.resident().returning:
            return False
        claimed = self._queue.claim(self._settings.owner, self._settings.lease_seconds)
        if claimed is None:
            return False
        job, lease = claimed
        watcher = threading.Thread(
            target=self._runner.run, args=(job, lease), name=f"job-{job.id}", daemon=True
        )
        watcher.start()
        self._watchers.append(watcher)
        return True

    def _sweep(self) -> None:
        """Remove the leftovers of jobs that ended while no worker held them: cancelled when queued again."""
        left = {
            directory.name: directory
            for directory in self._settings.directory.iterdir()
            if (directory / "work").exists() or (directory / "output").exists()
        }
        for job_id in self._queue.finished(left):
            remove_leftovers(left[job_id])
