"""What the fake server's TrainJobs are expected to take, and take: a second and a half a step."""

from __future__ import annotations

from finetuned.v1 import job_pb2

STEPS = 4
TOKENS_IN_STEP = 100
MEMORY_BYTES = 600_000_000
BUDGET_BYTES = 8_000_000_000
_ERROR = 0.1
"""Of every estimate."""


def steps_of(job: job_pb2.Job) -> int:
    """How many a TrainJob has."""
    return job.train.optimization.max_steps or STEPS


def estimated(job: job_pb2.Job) -> None:
    """Write down what a job will need at least, as when it is accepted."""
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
    """Write down what a job will take, as before its first step."""
    job.estimate.basis = job_pb2.ESTIMATE_BASIS_MEASURED
    job.estimate.duration.FromMilliseconds(1500 * job.estimate.steps)


def used(job: job_pb2.Job) -> None:
    """Write down what a job took when it ends."""
    if not job.HasField("estimate"):
        return
    job.usage.memory_bytes = round(job.estimate.memory_bytes / (1 + _ERROR))
    job.usage.duration.FromMilliseconds(round(job.estimate.duration.ToMilliseconds() / (1 + _ERROR)))
    if job.state == job_pb2.JOB_STATE_SUCCEEDED:
        job.usage.memory_error = job.usage.duration_error = _ERROR
