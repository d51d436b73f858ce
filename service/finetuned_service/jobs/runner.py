"""Runs one job in a process of its own, from its claim to its release, and publishes what it made.

Whatever happens to the process (crash, out of memory, kill), the job is left in a state that says so
and the worker goes on. Only when the lease is lost nothing is written: another worker decides.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from finetuned_service.errors import ResourceExhausted, Unavailable
from finetuned_service.jobs.assignment import Assignments
from finetuned_service.jobs.child import JobProcess
from finetuned_service.jobs.dispatcher_settings import DispatcherSettings
from finetuned_service.jobs.endings import (
    after_error,
    lost_engine,
    lost_process,
    over_memory,
    quality_refused,
)
from finetuned_service.jobs.events import Notice, Usage
from finetuned_service.jobs.lease import LeaseKeeper
from finetuned_service.jobs.memory import count_oom_kills
from finetuned_service.jobs.observer import JobObserver
from finetuned_service.jobs.process import environment_for_job_process
from finetuned_service.jobs.publish import Publisher
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.record import JobReport, apply_reports, events_of
from finetuned_service.jobs.room import DISK_FULL, Room
from finetuned_service.jobs.rows import Lease, LeaseLost
from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.jobs.task import (
    EXIT_STOPPED,
    Failed,
    QuantizeFinished,
    QuantizeTask,
    Suspended,
    TrainFinished,
    TrainTask,
)
from finetuned_service.jobs.values import Job
from finetuned_service.storage.files import says_full_disk
from finetuned_service.telemetry.logs import logger

_STRAY_STOP_SECONDS = 2.0
_ROOM_SECONDS = 1.0
"""Between two looks at the room on the disk."""
_STORE_TROUBLE = (Unavailable, ResourceExhausted)
"""What a store that fails for a moment says (`storage/database.py`)."""
_LOG = logger("jobs")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is known of a process that has ended."""

    exit_code: int | None
    words: list[JobReport]
    """Its last ones."""
    out_of_memory: bool
    """The kernel has ended some process for want of memory while it ran."""


class JobRunner:
    """Runs jobs that were claimed, each in the thread that calls `run`."""

    def __init__(
        self,
        settings: DispatcherSettings,
        queue: JobQueue,
        assignments: Assignments,
        publisher: Publisher,
        observer: JobObserver,
        stopping: threading.Event,
    ) -> None:
        """When `stopping` is set, jobs write a checkpoint and are given back."""
        self._settings = settings
        self._queue = queue
        self._assignments = assignments
        self._publisher = publisher
        self._observer = observer
        self._stopping = stopping
        self._room = Room(settings.directory, settings.min_free_disk_bytes)

    def run(self, job: Job, lease: Lease) -> None:
        """Run a job that was claimed just now; returns when it is left."""
        log = _LOG.bind(job=job.name, attempt=job.attempt)
        self._observer.claimed(job)
        try:
            with LeaseKeeper(
                self._queue, lease, self._settings.lease_seconds, self._settings.renew_seconds
            ) as keeper:
                left = self._leave(keeper, self._attempt(job, keeper))
        except LeaseLost:
            log.warning("job_lease_lost")
            return
        self._observer.left(left)
        log.info("job_left", state=left.state, reason=left.state_reason)
        if left.state.final:
            remove_leftovers(self._settings.directory / job.id)

    def _attempt(self, job: Job, keeper: LeaseKeeper) -> Ending:
        """How the job is to be left; every fault but a lost lease is an ending too."""
        try:
            shortage = self._room.shortage()
            return self._pause_for_disk(keeper, shortage) if shortage else self._run(job, keeper)
        except LeaseLost:
            raise
        except OSError as error:
            if says_full_disk(error):
                return self._pause_for_disk(keeper, DISK_FULL, self._room.more_than_now_bytes())
            return after_error(error, job.name)
        except Exception as error:  # noqa: BLE001 - whatever it was, the job must not stay RUNNING
            return after_error(error, job.name)

    def _run(self, job: Job, keeper: LeaseKeeper) -> Ending:
        directory = self._settings.directory / job.id
        task = self._insist(keeper, lambda: self._assignments.task_for(job, directory))
        process = JobProcess(
            self._settings.programs[task.kind],
            task,
            directory,
            environment_for_job_process(task.limits.threads),
        )
        _LOG.info("job_started", job=job.name, attempt=job.attempt, pid=process.pid)
        self._observer.process_started(job, process.pid)
        oom_kills = count_oom_kills()
        started = time.monotonic()
        try:
            words = self._follow(process, keeper, job)
        finally:
            self._observer.process_ended(job, process.pid)
            process.kill()
            process.close()
        ran = Usage(duration_seconds=time.monotonic() - started)
        self._insist(
            keeper, lambda: self._queue.record(keeper.lease, lambda job: apply_reports(job, [ran]), ())
        )
        ended = _Ended(process.exit_code, words, out_of_memory=count_oom_kills() > oom_kills)
        return self._conclude(ended, task, keeper)

    def _follow(self, process: JobProcess, keeper: LeaseKeeper, job: Job) -> list[JobReport]:
        """Write reports to the store until the process ends; returns all of its last words."""
        last_words: list[JobReport] = []
        unwritten: list[JobReport] = []
        kill_at = float("inf")
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                self._pause_without_room(keeper)
                look_at = time.monotonic() + _ROOM_SECONDS
            ended = process.exit_code is not None
            came = process.remaining_reports() if ended else process.reports(self._settings.poll_seconds)
            unwritten += came
            if unwritten and self._record(keeper, unwritten):
                last_words += [
                    r
                    for r in unwritten
                    if isinstance(r, (TrainFinished, QuantizeFinished, Failed, Suspended))
                ]
                self._observer.reported(job, unwritten)
                unwritten = []
            keeper.refuse_lost()
            if ended and not unwritten:
                return last_words
            kill_at = self._stop_if_asked(process, keeper, kill_at)
            if came or unwritten:
                # One transaction a poll, however fast the process reports.
                time.sleep(self._settings.poll_seconds)

    def _pause_without_room(self, keeper: LeaseKeeper) -> None:
        shortage = "" if keeper.pausing else self._room.shortage()
        if shortage:
            self._pause_for_disk(keeper, shortage)

    def _pause_as_told(self, keeper: LeaseKeeper, job: Job, word: Suspended) -> Ending:
        if word.reason == "ENGINE_ENDED":
            return lost_engine(job, word.text)
        if word.reason == "DISK_FULL":
            wanted_bytes = word.disk_bytes_wanted or self._room.more_than_now_bytes()
            ending = self._pause_for_disk(keeper, word.text, wanted_bytes)
            # One that was told to stop before is not told by that that it could not keep its last steps.
            told = (Notice(severity="WARNING", text=word.text),) if job.state is JobState.PAUSING else ()
            return replace(ending, bodies=told)
        return self._pause(keeper, Notice(text=word.text), StateReason.ESTIMATED)

    def _pause_for_disk(self, keeper: LeaseKeeper, why: str, wanted_bytes: int = 0) -> Ending:
        """`wanted_bytes` are what the job has told that it wants."""

        def wanting(job: Job) -> Job:
            most = max(job.disk_bytes_wanted, wanted_bytes)
            return job.model_copy(update={"disk_bytes_wanted": most})

        return self._pause(keeper, Notice(severity="WARNING", text=why), StateReason.DISK_FULL, wanting)

    def _pause(
        self,
        keeper: LeaseKeeper,
        notice: Notice,
        reason: StateReason,
        change: Callable[[Job], Job] = lambda job: job,
    ) -> Ending:
        """Have the job wait, for room on the disk or to be told to begin; the ending is for a job whose process is
        not running.
        """
        self._insist(keeper, lambda: self._queue.pause(keeper.lease, reason, [notice], change))
        return Ending(JobState.QUEUED, reason)

    def _stop_if_asked(self, process: JobProcess, keeper: LeaseKeeper, kill_at: float) -> float:
        """Ask the process to stop if there is a reason, and kill it when its time is over (`kill_at`)."""
        now = time.monotonic()
        if keeper.cancelling:
            patience_seconds = self._settings.kill_after_seconds
        elif self._stopping.is_set() or keeper.pausing or keeper.preempting:
            patience_seconds = self._settings.grace_seconds
        else:
            return kill_at
        if kill_at == float("inf"):
            process.ask_to_stop()
        kill_at = min(kill_at, now + patience_seconds)
        if now >= kill_at:
            process.kill()
        return kill_at

    def _record(self, keeper: LeaseKeeper, reports: list[JobReport]) -> bool:
        """Write reports; False if the store does not take them now."""
        try:
            self._queue.record(keeper.lease, lambda job: apply_reports(job, reports), events_of(reports))
        except _STORE_TROUBLE as error:
            _LOG.warning("job_reports_wait", job=keeper.lease.job_id, message=error.message)
            return False
        return True

    def _conclude(
        self,
        ended: _Ended,
        task: TrainTask | QuantizeTask,
        keeper: LeaseKeeper,
    ) -> Ending:
        job = self._insist(keeper, lambda: self._queue.renew(keeper.lease, self._settings.lease_seconds))
        if job.state is JobState.CANCELLING:
            return Ending(JobState.CANCELLED, StateReason.USER)
        for word in ended.words:
            match word:
                case TrainFinished() | QuantizeFinished():
                    return self._publish(job, task, word)
                case Failed():
                    return over_memory(job, word) or Ending(JobState.FAILED)
                case Suspended():
                    return self._pause_as_told(keeper, job, word)
                case _:
                    continue
        if job.state is JobState.PAUSING:
            # Given back as what it is then: it may be cancelled yet.
            return Ending(JobState.QUEUED, job.state_reason)
        if job.preempting:
            return Ending(JobState.QUEUED, StateReason.PREEMPTED)
        if self._stopping.is_set() or (ended.exit_code == EXIT_STOPPED and self._is_told_too()):
            return Ending(JobState.QUEUED, StateReason.SHUTDOWN)
        return lost_process(ended.exit_code, job, out_of_memory=ended.out_of_memory)

    def _is_told_too(self) -> bool:
        """Whether a stop that somebody else asked for is one of the whole server: a supervisor signals all
        processes at once, and the job may be the first to be done.
        """
        return self._stopping.wait(min(_STRAY_STOP_SECONDS, self._settings.lease_seconds / 2))

    def _publish(
        self, job: Job, task: TrainTask | QuantizeTask, finished: TrainFinished | QuantizeFinished
    ) -> Ending:
        match task, finished:
            case TrainTask(), TrainFinished():
                also = self._publisher.train(job, task, finished)
                return Ending(JobState.SUCCEEDED, also=also)
            case QuantizeTask(), QuantizeFinished():
                also = self._publisher.quantize(job, task, finished)
                if finished.accepted:
                    return Ending(JobState.SUCCEEDED, also=also)
                return quality_refused(task.spec.max_quality_drop or 0.0, finished, also)
            case _:
                raise RuntimeError(f"{job.name} reported the end of another kind of job")

    def _leave(self, keeper: LeaseKeeper, ending: Ending) -> Job:
        """Release the job as planned; if that cannot be written, nothing of it is, and the job fails."""
        try:
            return self._insist(keeper, lambda: self._queue.release(keeper.lease, ending))
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the job must not stay RUNNING
            failure = after_error(error, keeper.lease.job_id)
            return self._insist(keeper, lambda: self._queue.release(keeper.lease, failure))

    def _insist(self, keeper: LeaseKeeper, step: Callable[[], T]) -> T:
        """Repeat a step of the store while it fails for a moment and the job is ours.

        Raises:
            LeaseLost: it is no longer, or may not be.
        """
        while True:
            try:
                return step()
            except _STORE_TROUBLE as error:
                _LOG.warning("job_waits_for_store", job=keeper.lease.job_id, message=error.message)
            keeper.refuse_lost()
            time.sleep(self._settings.poll_seconds)


def remove_leftovers(directory: Path) -> None:
    """Remove what a finished job no longer needs; its task and its log stay."""
    for name in ("work", "output"):
        shutil.rmtree(directory / name, ignore_errors=True)
