"""How far the estimate of a job was off."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.jobs.events import EstimateBasis
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.values import Job, TrainResult


@dataclass(frozen=True, slots=True)
class EstimateErrors:
    """Estimated / used - 1, so 0.1 is 10% too much; None where there is nothing to compare."""

    memory: float | None = None
    duration: float | None = None


def estimate_errors(job: Job) -> EstimateErrors:
    """Of a job that succeeded: others ended before they had taken what they would. The least memory that the sizes of
    a TrainJob ask for is no estimate of what it takes.
    """
    estimate, usage = job.estimate, job.usage
    if job.state is not JobState.SUCCEEDED or estimate is None or usage is None:
        return EstimateErrors()
    stopped_early = isinstance(job.result, TrainResult) and job.result.stopped_early
    bound = estimate.basis is EstimateBasis.ARITHMETIC and isinstance(job.spec, TrainSpec)
    return EstimateErrors(
        memory=None if bound else _error(estimate.memory_bytes, usage.memory_bytes),
        duration=None if stopped_early else _error(estimate.duration_seconds, usage.duration_seconds),
    )


def _error(expected: float | None, found: float) -> float | None:
    return expected / found - 1 if expected and found else None
