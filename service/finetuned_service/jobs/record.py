"""How the reports of a job process change the job's record, and which of them become events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from finetuned_service.jobs.events import (
    Checkpoint,
    EvaluationFinished,
    EventBody,
    Notice,
    Overfitting,
    Progress,
    Usage,
)
from finetuned_service.jobs.task import (
    Estimated,
    Failed,
    Prepared,
    QuantizeFinished,
    Suspended,
    TrainFinished,
)
from finetuned_service.jobs.values import Job

JobReport = (
    Progress
    | Checkpoint
    | EvaluationFinished
    | Notice
    | Prepared
    | TrainFinished
    | QuantizeFinished
    | Overfitting
    | Estimated
    | Usage
    | Failed
    | Suspended
)
"""Everything that a job process can say (`task.Report`)."""

MAX_FURTHER_PROGRESS = 16
"""Of one batch of reports; a worker asks its process for one some times a second."""
MAX_CHECKPOINTS = 100
"""The newest that the record tells of, and the best: it is written anew with every batch of reports."""


def apply_reports(job: Job, reports: Iterable[JobReport]) -> Job:
    """The record after the reports; pure."""
    for report in reports:
        job = _apply(job, report)
    return job


def _apply(job: Job, report: JobReport) -> Job:
    match report:
        case Progress() | Overfitting():
            told = _with_training(report, job.progress) if isinstance(report, Progress) else report
            return job.model_copy(update={report.kind: told})
        case Checkpoint():
            kept = [
                checkpoint.model_copy(update={"best": checkpoint.best and not report.best})
                for checkpoint in job.checkpoints
                if checkpoint.step != report.step
            ]
            checkpoints = _newest_and_best((*kept, report))
            return job.model_copy(update={"checkpoints": checkpoints, "engine_ends": 0})
        case EvaluationFinished(subject="baseline" | "incumbent"):
            return _with_evaluation(job, report)
        case Prepared():
            changes = {
                "environment": report.environment,
                "estimate": report.estimate or job.estimate,
                "data_report": report.data_report or job.data_report,
            }
            return job.model_copy(update=changes)
        case Estimated() | Usage():
            return _with_cost(job, report)
        case TrainFinished():
            changes = {
                "metrics": report.metrics,
                "baseline_metrics": report.baseline_metrics or job.baseline_metrics,
                "incumbent_metrics": report.incumbent_metrics or job.incumbent_metrics,
                "samples": report.samples,
                "confusion": report.confusion,
            }
            return job.model_copy(update=changes)
        case Failed():
            return job.model_copy(update={"error": report.error, "fault": report.fault})
        case EvaluationFinished() | Notice() | QuantizeFinished() | Suspended():
            return job


def _with_training(report: Progress, before: Progress | None) -> Progress:
    """How far the job is: another phase than training leaves what was trained as it was."""
    if report.phase == "training" or before is None or not before.tokens:
        return report
    kept = before.model_dump(include={"step", "total_steps", "loss", "learning_rate", "tokens"})
    return report.model_copy(update=kept)


def _with_evaluation(job: Job, report: EvaluationFinished) -> Job:
    changes: dict[str, object] = {f"{report.subject}_metrics": report.metrics}
    if report.subject == "baseline":
        changes["baseline_confusion"] = report.confusion
    return job.model_copy(update=changes)


def _with_cost(job: Job, report: Estimated | Usage) -> Job:
    if isinstance(report, Estimated):
        return job.model_copy(update={"estimate": report.estimate})
    return job.model_copy(update={"usage": (job.usage or Usage()).with_part(report)})


def _newest_and_best(checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
    newest = checkpoints[-MAX_CHECKPOINTS:]
    return (*(old for old in checkpoints[:-MAX_CHECKPOINTS] if old.best), *newest)


def events_of(reports: Sequence[JobReport]) -> list[EventBody]:
    """The events of one batch of reports. Of progress in it the last report before anything else stands for all, and some more:
    a fast job has a curve, too.
    """
    told = [
        report for report in reports if isinstance(report, (Checkpoint, EvaluationFinished, Notice, Progress))
    ]
    last = [not _goes_on(report, after) for report, after in zip_longest(told, told[1:])]
    others = [number for number, is_last in enumerate(last) if not is_last]
    kept = set(others[:: max(1, math.ceil(len(others) / MAX_FURTHER_PROGRESS))])
    return [report for number, report in enumerate(told) if last[number] or number in kept]


def _goes_on(report: EventBody, after: EventBody | None) -> bool:
    """Whether the progress of one phase goes on."""
    return isinstance(report, Progress) and isinstance(after, Progress) and report.phase == after.phase
