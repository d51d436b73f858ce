"""Endings of a job that did not succeed, each with an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from finetuned_service.errors import (
    AlreadyExists,
    FinetunedError,
    Internal,
    NotFound,
    QualityGateFailed,
)
from finetuned_service.jobs.queue import Ending
from finetuned_service.jobs.task import QuantizeFinished
from finetuned_service.jobs.values import Fault, Job, JobState, Notice, StateReason
from finetuned_service.telemetry.logs import logger

MAX_ATTEMPTS = 3
"""A job whose process or worker is lost this often fails."""
_LOG = logger("jobs")


def lost_process(exit_code: int | None, job: Job) -> Ending:
    how = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    notice = Notice(severity="WARNING", text=f"the job process ended unexpectedly with {how}")
    if job.attempt < MAX_ATTEMPTS:
        return Ending(JobState.QUEUED, StateReason.WORKER_LOST, bodies=(notice,))
    error = Internal(
        f"the job process ended unexpectedly with {how} in attempt {job.attempt}, which is the last; a killed "
        "process is most often out of memory: try a smaller micro_batch_rows or max_row_tokens",
        metadata={"attempts": str(job.attempt)},
    )
    return Ending(JobState.FAILED, change=_failed_with(error, Fault.SYSTEM), bodies=(notice,))


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
