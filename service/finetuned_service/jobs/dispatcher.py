"""Takes queued jobs from the store and runs each in a process of its own.

It may live in the server or in a worker of its own: all it shares with others is the store and the
data directory. Whatever happens to a job process (crash, out of memory, kill), the job is given back
to the store and the server goes on.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.errors import FinetunedError, Internal, QualityGateFailed
from finetuned_service.jobs.assignment import Assignments
from finetuned_service.jobs.child import JobProcess
from finetuned_service.jobs.process import environment_for_job_process
from finetuned_service.jobs.publish import Publisher
from finetuned_service.jobs.record import JobReport, apply_reports, events_of
from finetuned_service.jobs.store import JobStore, Lease, LeaseLost
from finetuned_service.jobs.task import EXIT_STOPPED, Failed, QuantizeFinished, TrainFinished
from finetuned_service.jobs.values import Fault, Job, JobState, Notice, Progress, StateReason, TrainSpec
from finetuned_service.telemetry.logs import logger

POLL_SECONDS = 0.25
"""How often reports are written to the store: one transaction for all that came, not one a step."""
KILL_AFTER_SECONDS = 10.0
"""How long a process that was asked to stop for a cancel may take."""
MAX_ATTEMPTS = 3
"""A job whose process dies this often fails."""

_LOG = logger("jobs")


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    owner: str
    """Name of this worker in leases."""
    directory: Path
    """One directory a job."""
    max_running: int
    lease_seconds: float
    grace_seconds: float
    """How long job processes may take to write a checkpoint when the worker stops."""


class Dispatcher:
    """Runs up to `max_running` jobs, each watched by a thread."""

    def __init__(
        self,
        settings: DispatcherSettings,
        store: JobStore,
        assignments: Assignments,
        publisher: Publisher,
        count_training_tokens: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._assignments = assignments
        self._publisher = publisher
        self._count_training_tokens = count_training_tokens
        self._stopping = threading.Event()
        self._watchers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._loop, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin to take jobs; those that this worker held before a crash are given back at once."""
        self._settings.directory.mkdir(parents=True, exist_ok=True)
        self._store.expire(self._settings.owner)
        self._thread.start()

    def stop(self) -> None:
        """Ask running job processes to write a checkpoint, give their jobs back, return when done."""
        self._stopping.set()
        self._thread.join()
        for watcher in self._watchers:
            watcher.join()

    def _loop(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            self._watchers = [watcher for watcher in self._watchers if watcher.is_alive()]
            try:
                self._store.recover()
                while len(self._watchers) < self._settings.max_running and self._take_one():
                    pass
            except Exception:  # noqa: BLE001 - a store that fails for a moment must not end the worker
                _LOG.exception("dispatcher_round_failed")

    def _take_one(self) -> bool:
        claimed = self._store.claim(self._settings.owner, self._settings.lease_seconds)
        if claimed is None:
            return False
        watcher = threading.Thread(target=self._watch, args=claimed, name=f"job-{claimed[0].id}", daemon=True)
        watcher.start()
        self._watchers.append(watcher)
        return True

    def _watch(self, job: Job, lease: Lease) -> None:
        log = _LOG.bind(job=job.name, attempt=job.attempt)
        directory = self._settings.directory / job.id
        try:
            job = self._run(job, lease, directory)
            log.info("job_left", state=job.state, reason=job.state_reason)
            if job.state.final:
                for leftover in ("work", "output"):
                    shutil.rmtree(directory / leftover, ignore_errors=True)
        except LeaseLost:
            log.warning("job_lease_lost")
        except Exception as error:
            log.exception("job_watch_failed")
            self._fail(lease, error)

    def _run(self, job: Job, lease: Lease, directory: Path) -> Job:
        try:
            task = self._assignments.task_for(job, directory)
        except FinetunedError as error:
            return self._store.release(lease, JobState.FAILED, change=_failed_with(error, Fault.USER))
        process = JobProcess(task, directory, environment_for_job_process(task.limits.threads))
        _LOG.info("job_started", job=job.name, attempt=job.attempt, pid=process.pid)
        try:
            reports = self._follow(process, lease)
        finally:
            process.kill()
            process.close()
        return self._conclude(process.exit_code, reports, lease, directory)

    def _follow(self, process: JobProcess, lease: Lease) -> list[JobReport]:
        """Write reports to the store until the process ends; returns all of its last words."""
        last_words: list[JobReport] = []
        renew_at, kill_at, tokens = 0.0, float("inf"), 0
        while True:
            ended = process.exit_code is not None
            reports = process.remaining_reports() if ended else process.reports(POLL_SECONDS)
            if reports:
                tokens = self._count(reports, tokens)
                self._record(lease, reports)
                last_words += [r for r in reports if isinstance(r, (TrainFinished, QuantizeFinished, Failed))]
            if ended:
                return last_words
            now = time.monotonic()
            if now >= renew_at:
                renew_at = now + min(1.0, self._settings.lease_seconds / 4)
                if self._store.renew(lease, self._settings.lease_seconds) is JobState.CANCELLING:
                    kill_at = min(kill_at, self._stop_process(process, kill_at, KILL_AFTER_SECONDS))
            if self._stopping.is_set():
                kill_at = min(kill_at, self._stop_process(process, kill_at, self._settings.grace_seconds))
            if now >= kill_at:
                process.kill()
            if reports:
                # One transaction a poll, however fast the process reports.
                time.sleep(POLL_SECONDS)

    @staticmethod
    def _stop_process(process: JobProcess, kill_at: float, grace_seconds: float) -> float:
        if kill_at == float("inf"):
            process.ask_to_stop()
        return time.monotonic() + grace_seconds

    def _count(self, reports: list[JobReport], before: int) -> int:
        after = max((r.tokens for r in reports if isinstance(r, Progress)), default=before)
        if after > before:
            self._count_training_tokens(after - before)
        return max(after, before)

    def _record(self, lease: Lease, reports: list[JobReport]) -> None:
        self._store.record(lease, lambda job: apply_reports(job, reports), events_of(reports))

    def _conclude(self, exit_code: int | None, words: list[JobReport], lease: Lease, directory: Path) -> Job:
        job_state = self._store.renew(lease, self._settings.lease_seconds)
        if job_state is JobState.CANCELLING:
            return self._store.release(lease, JobState.CANCELLED, reason=StateReason.USER)
        for word in words:
            match word:
                case TrainFinished() | QuantizeFinished():
                    return self._publish(word, lease, directory / "output")
                case Failed():
                    return self._store.release(lease, JobState.FAILED)
                case _:
                    continue
        if exit_code == EXIT_STOPPED:
            return self._store.release(lease, JobState.QUEUED, reason=StateReason.SHUTDOWN)
        return self._lost(exit_code, lease)

    def _publish(self, finished: TrainFinished | QuantizeFinished, lease: Lease, output: Path) -> Job:
        job = self._store.record(lease, lambda current: current, [])
        if isinstance(finished, TrainFinished) and isinstance(job.spec, TrainSpec):
            base = self._assignments.base_directory(job.spec.base)
            record = self._publisher.train(job, job.spec, finished, output, base)
            return self._store.release(lease, JobState.SUCCEEDED, also=record)
        if isinstance(finished, QuantizeFinished) and not isinstance(job.spec, TrainSpec):
            record = self._publisher.quantize(job, job.spec, finished, output)
            if finished.accepted:
                return self._store.release(lease, JobState.SUCCEEDED, also=record)
            refusal = _quality_refusal(job.spec.max_quality_drop or 0.0, finished)
            change = _failed_with(refusal, Fault.USER)
            return self._store.release(lease, JobState.FAILED, change=change, also=record)
        raise RuntimeError(f"{job.name} reported the end of another kind of job")

    def _lost(self, exit_code: int | None, lease: Lease) -> Job:
        how = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
        job = self._store.record(
            lease,
            lambda current: current,
            [Notice(severity="WARNING", text=f"the job process ended unexpectedly with {how}")],
        )
        if job.attempt < MAX_ATTEMPTS:
            return self._store.release(lease, JobState.QUEUED, reason=StateReason.WORKER_LOST)
        error = Internal(
            f"the job process ended unexpectedly {MAX_ATTEMPTS} times, last with {how}; a killed process is "
            "most often out of memory: try a smaller micro_batch_rows or max_row_tokens",
            metadata={"attempts": str(MAX_ATTEMPTS)},
        )
        return self._store.release(lease, JobState.FAILED, change=_failed_with(error, Fault.SYSTEM))

    def _fail(self, lease: Lease, error: Exception) -> None:
        refusal = error if isinstance(error, FinetunedError) else Internal.opaque()
        _LOG.error("job_failed", job=lease.job_id, message=refusal.message)
        try:
            self._store.release(lease, JobState.FAILED, change=_failed_with(refusal, Fault.SYSTEM))
        except LeaseLost:
            _LOG.warning("job_lease_lost", job=lease.job_id)


def _failed_with(error: FinetunedError, fault: Fault) -> Callable[[Job], Job]:
    wire = error.to_wire()
    return lambda job: job.model_copy(update={"error": wire, "fault": fault})


def _quality_refusal(allowed: float, finished: QuantizeFinished) -> FinetunedError:
    report = finished.report
    drop = report.quantized_perplexity / report.source_perplexity - 1
    return QualityGateFailed(
        f"perplexity rises by {drop:.1%}, allowed: {allowed:.1%} (max_quality_drop); the report has the "
        "measurements. Allow more, or choose a format with more bits",
        metadata={"perplexity_rise": f"{drop:.6f}", "max_quality_drop": f"{allowed:.6f}"},
    )
