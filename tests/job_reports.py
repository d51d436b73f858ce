"""A finished job and its events as a client reads them, with something hostile in its texts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from finetuned import (
    Client,
    Job,
    JobEvent,
    JobState,
    JobStateReason,
    Metric,
    Notice,
    Severity,
)
from finetuned.testing import FakeServer
from finetuned.values.common import ConfusionMatrix, LabelCount, LengthSummary, Task
from finetuned.values.events import Checkpoint, EvaluationFinished, Progress
from finetuned.values.jobs import DataReport, EvaluationSample

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
"""What a row may hold: none of it may run."""


def finished_job(server: FakeServer, rows: str) -> tuple[Job, list[JobEvent]]:
    """A TrainJob of the fake server."""
    with Client(server.endpoint) as client:
        client.datasets.upload(rows, "rows")
        job = client.train(dataset="rows", adapter="mine")
        done = client.jobs.wait(job.name)
        return done, list(client.jobs.events(done.name))


def classified(job: Job) -> Job:
    """The same as a classifier that took one cat of 41 for a dog, with hostile texts and labels."""
    assert job.train is not None
    pairs = [("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", "dog")]
    samples = tuple(
        EvaluationSample(HOSTILE, right, "cat", given, correct=right == given) for right, given in pairs
    )
    labels = (LabelCount("cat", 20), LabelCount("dog", 5))
    return replace(
        job,
        display_name=HOSTILE,
        train=replace(job.train, task=Task.TEXT_CLASSIFICATION),
        data_report=DataReport(
            train_rows=25,
            eval_rows=4,
            train_tokens=250,
            supervised_tokens=25,
            mean_row_tokens=10.0,
            longest_row_tokens=12,
            truncated_rows=0,
            dropped_rows=0,
            duplicate_rows=1,
            leaked_rows=0,
            similar_leaked_rows=0,
            row_tokens=LengthSummary(mean=10.04, median=9, p90=11, p95=12, p99=13, longest=14),
            train_labels=labels,
            eval_labels=labels[:1],
            imbalance_ratio=4.0,
            warnings=(HOSTILE,),
        ),
        checkpoints=(Checkpoint(4, 0.5, best=True), Checkpoint(8, 0.7, best=False)),
        samples=samples,
        baseline_confusion=ConfusionMatrix(("cat", HOSTILE), (41, 0, 70, 0), 0),
        confusion=ConfusionMatrix(("cat", HOSTILE), (40, 1, 0, 70), 0),
        state=JobState.SUCCEEDED,
        state_reason=JobStateReason.UNKNOWN,
    )


def events() -> list[JobEvent]:
    """Eight steps, of which the fifth and sixth ran twice; held-out loss and macro_f1 twice; a warning."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    steps = [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    told: list[JobEvent] = []
    for ran, step in enumerate(steps):
        loss = 2.0 / step if ran < 6 else 1.0 / step
        progress = Progress("training", step, 8, loss, 100.0, None, 1e-3 * step, 10 * step)
        told.append(JobEvent(len(told) + 1, now, progress=progress))
        if step in {4, 8}:
            metrics = (
                Metric("loss", 0.5 + step / 10, higher_is_better=False),
                Metric("macro_f1", step / 16, higher_is_better=True),
            )
            told.append(JobEvent(len(told) + 1, now, evaluation=EvaluationFinished("adapter", step, metrics)))
    storing = Progress("evaluating", 1, 1, 0.0, 0.0, None, 0.0, 0)
    last = EvaluationFinished("adapter", 4, (Metric("loss", 9.0, higher_is_better=False),))
    told.append(JobEvent(len(told) + 1, now, progress=storing))
    told.append(JobEvent(len(told) + 1, now, evaluation=last))
    told.append(JobEvent(len(told) + 1, now, notice=Notice(Severity.WARNING, f"it overfits {HOSTILE}")))
    return told
