"""Jobs: what one worker counts while it runs them, and what the store says of all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetuned_service.errors import FinetunedError
from finetuned_service.jobs.census import KINDS, JobCensus
from finetuned_service.jobs.events import Checkpoint, Progress
from finetuned_service.jobs.record import JobReport
from finetuned_service.jobs.states import Fault, JobState
from finetuned_service.jobs.usage import estimate_errors
from finetuned_service.jobs.values import Job

_STEP_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_ERROR_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
_JOB_SECONDS = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400, 259_200)


class JobMetrics:
    """A `JobObserver` of one worker, in a server or apart from one. Any thread."""

    def __init__(self, registry: CollectorRegistry, slots: int) -> None:
        """`slots` is how many jobs the worker runs at once."""
        self._lock = threading.Lock()
        self._process_ids: set[int] = set()
        Gauge("finetuned_job_slots", "Jobs that this worker runs at once.", registry=registry).set(slots)
        processes = Gauge("finetuned_job_processes", "Job processes of this worker.", registry=registry)
        processes.set_function(lambda: len(self._process_ids))
        self._attempts = Counter(
            "finetuned_job_attempts",
            "Jobs that this worker took, again or for the first time.",
            ["kind"],
            registry=registry,
        )
        self._preemptions = Counter(
            "finetuned_job_preemptions",
            "Jobs that went back into the queue, by reason: shutdown of the worker, or worker_lost (its process "
            "was killed or crashed).",
            ["kind", "reason"],
            registry=registry,
        )
        self._ended = Counter(
            "finetuned_jobs_ended",
            "Jobs that this worker brought to an end; fault is user or system for failed ones.",
            ["kind", "state", "fault"],
            registry=registry,
        )
        for kind in KINDS:
            # An alert on an increase needs the zero before it.
            self._ended.labels(kind, "failed", "system")
            for reason in ("shutdown", "worker_lost"):
                self._preemptions.labels(kind, reason)
        self._queue_seconds = Histogram(
            "finetuned_job_queue_seconds",
            "Time from the creation of a job to its first attempt.",
            ["kind"],
            buckets=_JOB_SECONDS,
            registry=registry,
        )
        self._run_seconds = Histogram(
            "finetuned_job_run_seconds",
            "Time from the first attempt at a job to its end.",
            ["kind"],
            buckets=_JOB_SECONDS,
            registry=registry,
        )
        self._estimate_errors = Histogram(
            "finetuned_job_estimate_error_ratio",
            "How far the estimates of jobs that succeeded were off, up or down, as a share of what they took; "
            "quantity is memory or duration.",
            ["kind", "quantity"],
            buckets=_ERROR_RATIOS,
            registry=registry,
        )
        self._training_tokens = Counter(
            "finetuned_training_tokens",
            "Tokens of all steps of training, repeated ones too.",
            registry=registry,
        )
        self._step_seconds = Histogram(
            "finetuned_training_step_seconds",
            "Duration of a step of training; its count is the steps, repeated ones too.",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._checkpoints = Counter(
            "finetuned_job_checkpoints", "Checkpoints that jobs wrote.", registry=registry
        )

    def process_ids(self) -> Sequence[int]:
        """Of the running job processes."""
        with self._lock:
            return sorted(self._process_ids)

    def claimed(self, job: Job) -> None:
        self._attempts.labels(job.spec.kind).inc()
        if job.attempt == 1 and job.progress is None:
            self._queue_seconds.labels(job.spec.kind).observe(_seconds(job.create_time, job.start_time))

    def process_started(self, job: Job, pid: int) -> None:
        with self._lock:
            self._process_ids.add(pid)

    def process_ended(self, job: Job, pid: int) -> None:
        with self._lock:
            self._process_ids.discard(pid)

    def reported(self, job: Job, reports: Sequence[JobReport]) -> None:
        for report in reports:
            match report:
                case Checkpoint():
                    self._checkpoints.inc()
                case Progress(step_tokens=tokens, step_seconds=seconds) if tokens:
                    self._training_tokens.inc(tokens)
                    self._step_seconds.observe(seconds)
                case _:
                    continue

    def left(self, job: Job) -> None:
        kind, state = job.spec.kind, job.state
        if state is JobState.QUEUED:
            self._preemptions.labels(kind, job.state_reason.lower()).inc()
        elif state.final:
            fault = (job.fault or Fault.SYSTEM).lower() if state is JobState.FAILED else ""
            self._ended.labels(kind, state.lower(), fault).inc()
            self._run_seconds.labels(kind).observe(_seconds(job.start_time, job.end_time))
            errors = estimate_errors(job)
            for quantity, error in (("memory", errors.memory), ("duration", errors.duration)):
                if error is not None:
                    self._estimate_errors.labels(kind, quantity).observe(abs(error))


def watch_store(registry: CollectorRegistry, census: Callable[[], JobCensus]) -> None:
    """Expose what the store says of all jobs; for one process of a deployment (the server)."""
    registry.register(_StoreCollector(census))


class _StoreCollector(Collector):
    def __init__(self, census: Callable[[], JobCensus]) -> None:
        self._census = census

    def collect(self) -> Iterable[GaugeMetricFamily]:
        try:
            found = self._census()
        except FinetunedError:
            # The page must not fail with the store: that it does is what the page has to say.
            yield GaugeMetricFamily("finetuned_store_up", _STORE_UP, value=0)
            return
        yield GaugeMetricFamily("finetuned_store_up", _STORE_UP, value=1)
        jobs = GaugeMetricFamily("finetuned_jobs", "Jobs in the store.", labels=["kind", "state"])
        for (kind, state), number in found.jobs.items():
            jobs.add_metric([kind, state.lower()], number)
        yield jobs
        yield GaugeMetricFamily(
            "finetuned_job_queue_age_seconds",
            "How long the job that waits longest has waited; 0 if none waits.",
            value=found.queue_age_seconds,
        )
        yield GaugeMetricFamily(
            "finetuned_job_silent_seconds",
            "How long the most silent running job has reported nothing; 0 if none runs.",
            value=found.silent_seconds,
        )


_STORE_UP = "1 while the store of jobs answers."


def _seconds(begin: datetime | None, end: datetime | None) -> float:
    return 0.0 if begin is None or end is None else max(0.0, (end - begin).total_seconds())
