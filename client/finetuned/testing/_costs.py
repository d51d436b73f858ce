"""What the fake server's jobs are expected to take, and take: a second and a half a step."""

from __future__ import annotations

from finetuned.v1 import job_pb2

STEPS = 4
TOKENS_IN_STEP = 100
MEMORY_BYTES = 600_000_000
BUDGET_BYTES = 8_000_000_000
_STEP_SECONDS = 1.5
_START_SECONDS = 0.5
_ERROR = 0.1
"""Of every estimate."""


def steps_of(job: job_pb2.Job) -> int:
    """How many a job has."""
    return job.train.optimization.max_steps or STEPS


def estimated(job: job_pb2.Job) -> None:
    """Write down what a job will need at least, as when a TrainJob is accepted or a Quantize run begins."""
    steps = steps_of(job)
    job.estimate.CopyFrom(
        job_pb2.Estimate(
            steps=steps,
            tokens=steps * TOKENS_IN_STEP,
            memory_bytes=MEMORY_BYTES,
            basis=job_pb2.ESTIMATE_BASIS_ARITHMETIC,
            runtime_memory_bytes=MEMORY_BYTES // 2,
            base_memory_bytes=MEMORY_BYTES // 3,
            memory_budget_bytes=BUDGET_BYTES,
        )
    )


def measured(job: job_pb2.Job) -> None:
    """Write down what a TrainJob will take, as before its first step."""
    job.estimate.basis = job_pb2.ESTIMATE_BASIS_MEASURED
    job.estimate.duration.FromMilliseconds(round(1000 * _STEP_SECONDS * job.estimate.steps))


def used(job: job_pb2.Job) -> None:
    """Write down what a job took so far, as when one of its processes has ended."""
    if not job.HasField("start_time"):
        return
    succeeded = job.state == job_pb2.JOB_STATE_SUCCEEDED
    expected = job.estimate.duration.ToMilliseconds() / 1000
    ran = _START_SECONDS + _STEP_SECONDS * job.progress.step
    seconds = expected if succeeded and expected else ran
    job.usage.memory_bytes = round(MEMORY_BYTES / (1 + _ERROR))
    job.usage.duration.FromMilliseconds(round(1000 * seconds / (1 + _ERROR)))
    if succeeded:
        job.usage.memory_error = _ERROR
        if expected:
            job.usage.duration_error = _ERROR
