"""Endings of a job that did not succeed, each with an error that says what to do."""

from __future__ import annotations

import signal
from collections.abc import Callable

from sqlalchemy import Connection

from finetuned_service.errors import (
    AlreadyExists,
    FinetunedError,
    Internal,
    NotFound,
    QualityGateFailed,
)
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.queue import Ending
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.states import Fault, JobState, StateReason
from finetuned_service.jobs.task import Failed, QuantizeFinished
from finetuned_service.jobs.values import Job
from finetuned_service.telemetry.logs import logger

MAX_ATTEMPTS = 3
"""A job whose process or worker is lost this often fails; or its engine, with no checkpoint in between."""
_MEMORY_REFUSED = {"memory_budget_bytes", "device_memory_bytes"}
"""One of them is in the metadata of what refuses a job more memory: the machine's, a GPU's."""
_LOG = logger("jobs")


def lost_process(exit_code: int | None, job: Job, *, out_of_memory: bool) -> Ending:
    """The end of an attempt whose process has not said why it ended: the job goes on from its last checkpoint.

    What the kernel ended for want of memory, or something kills again and again, goes on with half the rows
    at once.

    Args:
        exit_code: of the process; negative numbers are signals.
        job: as it is now.
        out_of_memory: the kernel has ended processes of this machine for want of memory meanwhile.
    """
    how = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    killed = exit_code == -signal.SIGKILL
    why = "; the kernel ends processes when memory runs out" if killed and out_of_memory else ""
    notice = Notice(severity="WARNING", text=f"the job process ended unexpectedly with {how}{why}")
    if job.losses + 1 < MAX_ATTEMPTS:
        rows = half_the_rows(job) if killed and (out_of_memory or job.losses > 0) else 0
        if rows:
            told = Notice(severity="WARNING", text=_halved(rows))
            return Ending(JobState.QUEUED, StateReason.WORKER_LOST, _with_rows(rows), (notice, told))
        return Ending(JobState.QUEUED, StateReason.WORKER_LOST, bodies=(notice,))
    error = Internal(
        f"the job process ended unexpectedly with {how} in attempt {job.attempt}, for the {MAX_ATTEMPTS}rd time: "
        "it is not tried again. A killed "
        "process is most often out of memory: try a smaller micro_batch_rows or max_row_tokens",
        metadata={"attempts": str(job.attempt)},
    )
    return Ending(JobState.FAILED, change=_failed_with(error, Fault.SYSTEM), bodies=(notice,))


def lost_engine(job: Job, text: str) -> Ending:
    """The end of an attempt whose engine, which lends it its base, has ended: it may be the job that ends it.

    Args:
        job: as it is now. One that was told to pause does, and is asked again when it is resumed.
        text: what its process has said.
    """
    notice = Notice(severity="WARNING", text=text)
    ends = job.engine_ends + 1
    if ends < MAX_ATTEMPTS or job.state is JobState.PAUSING:
        return Ending(JobState.QUEUED, StateReason.ENGINE_ENDED, bodies=(notice,))
    error = Internal(
        f"the engine that holds the job's base on the GPU has ended {ends} times while the job computed with it, and no "
        f"checkpoint was written in between; the last time in attempt {job.attempt}: it is not tried again. The "
        "server's log tells why the engine ended (engine_died). If the job leaves it no memory, try a smaller "
        "micro_batch_rows or max_row_tokens; if the engine ends without the job, too, submit it again when it stays",
        metadata={"attempts": str(job.attempt)},
    )
    return Ending(JobState.FAILED, change=_failed_with(error, Fault.SYSTEM), bodies=(notice,))


def over_memory(job: Job, failed: Failed) -> Ending | None:
    """The end of an attempt that its memory budget has ended: once, the job goes on from its last checkpoint
    with half the rows at once, whose gradients are added up to that of the whole batch. None where that
    cannot help, or has not helped: the user decides.
    """
    if not _MEMORY_REFUSED & failed.error.get("metadata", {}).keys():
        return None
    rows = half_the_rows(job)
    if not rows:
        return None
    notice = Notice(severity="WARNING", text=f"{failed.error['message']}. {_halved(rows)}")
    return Ending(JobState.QUEUED, StateReason.MEMORY, _with_rows(rows), (notice,))


def half_the_rows(job: Job) -> int:
    """How many rows are to run at once after the memory had no room; 0 if it was so before, or it is one row."""
    if job.micro_batch_rows or not isinstance(job.spec, TrainSpec):
        return 0
    optimization = job.spec.optimization
    return (optimization.micro_batch_rows or optimization.batch_rows) // 2


def _halved(rows: int) -> str:
    return (
        f"From here on {rows} rows run at once, and their gradients are added up to the same gradient of the "
        "whole batch; this is done once"
    )


def _with_rows(rows: int) -> Callable[[Job], Job]:
    return lambda job: job.model_copy(update={"micro_batch_rows": rows, "error": None, "fault": None})


def after_error(error: Exception, job_name: str) -> Ending:
    """The end of a job at an exception: what names itself is the user's to read, the rest is ours."""
    refusal = error if isinstance(error, FinetunedError) else Internal.opaque()
    _LOG.error("job_failed", job=job_name, message=refusal.message, exc_info=error)
    fault = Fault.USER if isinstance(refusal, (NotFound, AlreadyExists)) else Fault.SYSTEM
    return Ending(JobState.FAILED, change=_failed_with(refusal, fault))


def _failed_with(error: FinetunedError, fault: Fault) -> Callable[[Job], Job]:
    wire = error.to_wire()
    return lambda job: job.model_copy(update={"error": wire, "fault": fault})


def quality_refused(
    allowed: float, finished: QuantizeFinished, record_report: Callable[[Connection, Job], Job]
) -> Ending:
    """The measurements stay with the job that they failed."""
    report = finished.report
    drop = report.quantized_perplexity / report.source_perplexity - 1
    refusal = QualityGateFailed(
        f"perplexity rises by {drop:.1%}, allowed: {allowed:.1%} (max_quality_drop); the report has the "
        "measurements. Allow more, or choose a format with more bits",
        metadata={"perplexity_rise": f"{drop:.6f}", "max_quality_drop": f"{allowed:.6f}"},
    )
    return Ending(JobState.FAILED, change=_failed_with(refusal, Fault.USER), also=record_report)
