"""How reports change a job's record, and which become events."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from finetuned_service.jobs.events import (
    Checkpoint,
    Environment,
    Estimate,
    EvaluationFinished,
    Notice,
    Overfitting,
    Progress,
    Usage,
)
from finetuned_service.jobs.record import MAX_CHECKPOINTS, MAX_FURTHER_PROGRESS, apply_reports, events_of
from finetuned_service.jobs.states import Fault, JobState
from finetuned_service.jobs.task import REPORTS, Estimated, Failed, Prepared, QuantizeFinished, TrainFinished
from finetuned_service.jobs.usage import estimate_errors
from finetuned_service.jobs.values import EvaluationSample, Job, QuantizeReport, TrainResult
from finetuned_service.vocabulary import ConfusionMatrix, Metric
from tiny_jobs import train_job

METRICS = (Metric(name="loss", value=1.5, higher_is_better=False),)
OTHER_METRICS = (Metric(name="loss", value=2.5, higher_is_better=False),)
ENVIRONMENT = Environment(base_digest="sha256:b", service_version="1")
QUANTIZED = QuantizeFinished(
    report=QuantizeReport(
        source_bytes=2,
        quantized_bytes=1,
        source_perplexity=4.0,
        quantized_perplexity=5.0,
        mean_kl_nats=0.1,
        top1_agreement=0.9,
        evaluated_tokens=10,
        quantized_modules=1,
    ),
    accepted=True,
)


def applied(*reports, job: Job | None = None) -> Job:
    return apply_reports(job or train_job(), reports)


TURNED = Overfitting(best_step=4, best_loss=1.0, step=8, loss=2.0)


def changed(before: Job, after: Job) -> dict[str, object]:
    """The fields that differ, with their new values."""
    return {
        name: getattr(after, name)
        for name in Job.model_fields
        if getattr(before, name) != getattr(after, name)
    }


SAMPLES = (EvaluationSample(prompt="a", expected="b"),)
CONFUSION = ConfusionMatrix(labels=("a", "b"), counts=(3, 1, 0, 2))


@pytest.mark.parametrize(
    ("report", "changes"),
    [
        (Progress(phase="training", step=3), {"progress": Progress(phase="training", step=3)}),
        (Checkpoint(step=5), {"checkpoints": (Checkpoint(step=5),)}),
        (EvaluationFinished(subject="baseline", metrics=METRICS), {"baseline_metrics": METRICS}),
        (
            EvaluationFinished(subject="baseline", metrics=METRICS, confusion=CONFUSION),
            {"baseline_metrics": METRICS, "baseline_confusion": CONFUSION},
        ),
        (EvaluationFinished(subject="incumbent", metrics=METRICS), {"incumbent_metrics": METRICS}),
        (EvaluationFinished(subject="adapter", metrics=METRICS), {}),
        (Notice(text="hello"), {}),
        (TURNED, {"overfitting": TURNED}),
        (Estimated(estimate=Estimate(steps=9)), {"estimate": Estimate(steps=9)}),
        (Usage(memory_bytes=5), {"usage": Usage(memory_bytes=5)}),
        (QUANTIZED, {}),
        (Prepared(environment=ENVIRONMENT), {"environment": ENVIRONMENT}),
        (TrainFinished(metrics=METRICS, samples=SAMPLES), {"metrics": METRICS, "samples": SAMPLES}),
        (TrainFinished(metrics=METRICS, confusion=CONFUSION), {"metrics": METRICS, "confusion": CONFUSION}),
        (Failed(error={"reason": "X"}, fault=Fault.USER), {"error": {"reason": "X"}, "fault": Fault.USER}),
    ],
)
def test_each_report_changes_its_part_of_the_record(report, changes):
    before = train_job()
    assert changed(before, applied(report, job=before)) == changes


def test_what_was_known_before_stays_where_a_report_says_nothing_of_it():
    job = applied(
        Prepared(environment=ENVIRONMENT, estimate=Estimate(steps=7)),
        EvaluationFinished(subject="baseline", metrics=METRICS),
        EvaluationFinished(subject="incumbent", metrics=METRICS),
        Prepared(environment=ENVIRONMENT),
        TrainFinished(metrics=OTHER_METRICS),
    )
    assert (job.estimate.steps, job.baseline_metrics, job.incumbent_metrics) == (7, METRICS, METRICS)
    assert job.metrics == OTHER_METRICS


def test_usage_is_the_most_memory_and_all_the_time_of_all_attempts():
    attempts = [
        Usage(memory_bytes=7),
        Usage(duration_seconds=2.0),
        Usage(memory_bytes=5),
        Usage(duration_seconds=3.0),
    ]
    assert applied(*attempts).usage == Usage(memory_bytes=7, duration_seconds=5.0)


ESTIMATE = Estimate(memory_bytes=110, duration_seconds=8.0)
USAGE = Usage(memory_bytes=100, duration_seconds=10.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0.1, -0.2)),
        ({"result": TrainResult(version="v", digest="d", stopped_early=True)}, (0.1, None)),
        ({"state": JobState.FAILED}, (None, None)),
        ({"estimate": None}, (None, None)),
        ({"estimate": Estimate(steps=3)}, (None, None)),
        ({"usage": None}, (None, None)),
        ({"usage": Usage(duration_seconds=4.0)}, (None, 1.0)),
    ],
)
def test_how_far_an_estimate_was_off(changes, expected):
    job = train_job().model_copy(
        update={"state": JobState.SUCCEEDED, "estimate": ESTIMATE, "usage": USAGE, **changes}
    )
    errors = estimate_errors(job)
    assert (errors.memory, errors.duration) == pytest.approx(expected)


def test_one_checkpoint_is_the_best_and_a_step_stands_once():
    job = applied(
        Checkpoint(step=5, best=True),
        Checkpoint(step=10),
        Checkpoint(step=15, best=True),
        Checkpoint(step=10, eval_loss=1.0),
    )
    assert [(c.step, c.best) for c in job.checkpoints] == [(5, False), (15, True), (10, False)]


def test_the_record_tells_of_the_newest_checkpoints_and_the_best():
    reports = [Checkpoint(step=step, best=step == 3) for step in range(1, 3 * MAX_CHECKPOINTS)]
    steps = [checkpoint.step for checkpoint in applied(*reports).checkpoints]
    assert steps == [3, *range(2 * MAX_CHECKPOINTS, 3 * MAX_CHECKPOINTS)]


def test_how_far_training_came_stays_known():
    step = Progress(phase="training", step=7, total_steps=9, loss=0.5, learning_rate=1e-3, tokens=70)
    measuring = Progress(phase="baseline", step=3, total_steps=4)
    assert applied(measuring).progress == measuring
    assert applied(measuring, step).progress == step
    found = applied(
        step, Progress(phase="evaluating", step=2, total_steps=5), Progress(phase="storing")
    ).progress
    assert found == Progress(phase="storing", step=7, total_steps=9, loss=0.5, learning_rate=1e-3, tokens=70)


def test_events_tell_of_everything_and_of_some_progress():
    reports = [
        Progress(phase="training", step=1),
        Notice(text="hello"),
        Progress(phase="training", step=2),
        Checkpoint(step=2),
        EvaluationFinished(subject="adapter", metrics=METRICS),
        Progress(phase="training", step=3),
        Prepared(environment=ENVIRONMENT),
        TrainFinished(metrics=METRICS),
        Failed(error={}, fault=Fault.USER),
    ]
    assert events_of(reports) == reports[:6]
    assert events_of([]) == []
    steps = [Progress(phase="training", step=step) for step in range(1, 101)]
    done = EvaluationFinished(subject="adapter", step=50, metrics=METRICS)
    measuring = [Progress(phase="evaluating", step=step) for step in range(3)]
    told = events_of([*steps[:50], done, *steps[50:], *measuring])
    assert told.index(done) == told.index(steps[49]) + 1  # how far it was
    assert (steps[99] in told, told[-1]) == (True, measuring[-1])
    curve = [report.step for report in told if isinstance(report, Progress) and report.phase == "training"]
    assert curve == sorted(set(curve))
    assert MAX_FURTHER_PROGRESS - 4 <= len(curve) <= MAX_FURTHER_PROGRESS + 2
    assert max(late - early for early, late in pairwise([0, *curve])) <= 8


def test_the_numbers_of_a_run_that_diverged_come_through():
    nan = Progress(phase="training", step=1, loss=math.nan)
    infinite = Metric(name="perplexity", value=math.inf, higher_is_better=False)
    heard = [
        REPORTS.validate_json(report.model_dump_json())
        for report in (nan, TrainFinished(metrics=(infinite,)))
    ]
    job = Job.model_validate_json(applied(*heard).model_dump_json())
    assert math.isnan(job.progress.loss)
    assert job.metrics == (infinite,)
