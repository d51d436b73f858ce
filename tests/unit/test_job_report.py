"""The report of a job: what it holds, and that nothing in it runs or is fetched."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from both_clients import write_rows
from finetuned import ConfusionMatrix, Job, Metric, Objective
from finetuned.cli.app import app
from finetuned.cli.exit_codes import ExitCode
from finetuned.cli.job_report import html_report
from finetuned.cli.job_report.confusion import confusion_tables
from finetuned.cli.job_report.curves import Curves
from finetuned.testing import FakeServer
from finetuned.values.common import Task
from job_reports import HOSTILE, classified, events, finished_job
from typer.testing import CliRunner


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def job(server: FakeServer, tmp_path: Path) -> Job:
    rows = write_rows(tmp_path / "rows.jsonl")
    return finished_job(server, str(rows))[0]


def test_the_command_writes_the_page(
    server: FakeServer, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNED_ENDPOINT", server.endpoint)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["jobs", "report", job.name.rpartition("/")[2]])
    assert result.exit_code == 0, result.output
    page = Path(result.stdout.strip()).read_text(encoding="utf-8")
    for part in (
        "Figures on the held-out rows",
        "Loss, nats per supervised token",
        "Learning rate",
        "Before and after",
        "Cost",
        "Lineage",
        "Settings, resolved",
        "dataset",
        "products in bfloat16, what trains in float32",
    ):
        assert part in page
    assert job.train_result is not None
    assert job.train_result.version in page


def test_a_step_that_ran_twice_counts_as_it_ran_last_and_the_last_evaluation_is_no_point(job: Job) -> None:
    curves = Curves.of(events())
    assert (curves.loss[4], curves.loss[5], curves.loss[6]) == (0.5, 0.2, 1 / 6)
    assert curves.heldout == {"loss": {4: 0.9, 8: 1.3}, "macro_f1": {4: 0.25, 8: 0.5}}
    loss, metric, rate = curves.charts(classified(job))
    assert (loss.mark, metric.mark, rate.mark) == (4, 4, None)
    assert list(loss.lines) == ["training", "held-out"]
    assert (metric.title, metric.lines) == (
        "macro_f1 on the held-out rows",
        {"macro_f1": {4: 0.25, 8: 0.5}},
    )


def test_the_confusion_matrices_are_those_of_all_held_out_rows(job: Job) -> None:
    assert list(confusion_tables(job)) == []
    after, before = confusion_tables(classified(job))
    assert (after.subject, after.counts, after.total) == ("this version", ((40, 1), (0, 70)), 111)
    assert (after.recall, after.precision) == (("98%", "100%"), ("100%", "99%"))
    # Nothing was given the second label.
    assert (before.subject, before.precision) == ("plain base", ("37%", ""))
    page = html_report(classified(job), events())
    assert "Of all 111 rows held out" in page
    assert 'id="confusion-1"' in page
    assert 'id="confusion-2"' in page


def titled(job: Job, task: Task, objective: Objective, labels: bool | None, *figures: str) -> str:
    """The title of the loss of a job on rows with labels, without any, or not counted yet (None)."""
    assert job.train is not None
    report = classified(job).data_report
    assert report is not None
    report = None if labels is None else replace(report, train_labels=report.train_labels if labels else ())
    metrics = tuple(Metric(name, 0.5, higher_is_better=True) for name in figures)
    spec = replace(job.train, task=task, objective=objective)
    made = replace(job, train=spec, data_report=report, metrics=(), baseline_metrics=metrics)
    return next(Curves.of(events()).charts(made)).title


@pytest.mark.parametrize(
    ("task", "objective", "labels", "figures", "title"),
    [
        (Task.TEXT_GENERATION, Objective.SFT, False, ("exact_match",), "Loss, nats per supervised token"),
        (Task.TEXT_GENERATION, Objective.DPO, False, (), "Loss, nats per pair"),
        (Task.TEXT_CLASSIFICATION, Objective.CLASSIFICATION, True, ("macro_f1",), "Loss, nats per row"),
        (
            Task.TEXT_CLASSIFICATION,
            Objective.CLASSIFICATION,
            False,
            (),
            "Loss, squared error over the variance",
        ),
        (
            Task.TEXT_CLASSIFICATION,
            Objective.CLASSIFICATION,
            None,
            ("spearman", "mean_absolute_error"),
            "Loss, squared error over the variance",
        ),
        (Task.IMAGE_CLASSIFICATION, Objective.CLASSIFICATION, True, (), "Loss, nats per row"),
        (Task.TOKEN_CLASSIFICATION, Objective.CLASSIFICATION, True, (), "Loss, nats per word"),
        (Task.FEATURE_EXTRACTION, Objective.CONTRASTIVE, False, ("mrr_at_10",), "Loss, nats per pair"),
        (
            Task.FEATURE_EXTRACTION,
            Objective.CONTRASTIVE,
            False,
            ("spearman", "pearson"),
            "Loss, squared error of the cosine per pair",
        ),
        (Task.FEATURE_EXTRACTION, Objective.CONTRASTIVE, False, (), "Loss per pair"),
    ],
)
def test_a_loss_is_titled_by_what_the_job_trains(
    job: Job, task: Task, objective: Objective, labels: bool | None, figures: tuple[str, ...], title: str
) -> None:
    assert titled(job, task, objective, labels, *figures) == title


def test_lengths_and_the_balance_of_labels_are_shown(job: Job) -> None:
    page = html_report(classified(job), events())
    assert "mean 10.0, median 9, 90% 11, 95% 12, 99% 13, longest 14" in page
    assert "Of the rows trained on, the most frequent label is 4.0 times the rarest." in page
    report = classified(job).data_report
    assert report is not None
    even = replace(report, row_tokens=None, imbalance_ratio=1.0)
    page = html_report(replace(classified(job), data_report=even), events())
    assert "before any is cut" not in page
    assert 'id="labels"' in page
    assert 'id="imbalance"' not in page


def test_every_metric_that_is_measured_between_steps_has_a_curve(job: Job) -> None:
    page = html_report(classified(job), events())
    assert page.count("<svg") == 3
    assert page.count("<h2>macro_f1 on the held-out rows</h2>") == 1


def test_labels_that_share_a_row_are_told_as_so_many_others(job: Job) -> None:
    matrix = ConfusionMatrix(("a", "b"), (5, 0, 1, 0, 4, 0, 0, 2, 3), other_labels=9)
    (table,) = confusion_tables(replace(job, confusion=matrix))
    assert (table.labels, table.counts[2]) == (("a", "b", "9 others"), (0, 2, 3))


def test_without_its_libraries_the_command_says_what_to_install(
    server: FakeServer, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNED_ENDPOINT", server.endpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    result = CliRunner().invoke(app, ["jobs", "report", job.name])
    assert (result.exit_code, result.stdout) == (ExitCode.OTHER, "")
    assert "needs jinja2 and matplotlib" in result.stderr
    assert "pip install 'finetuned-service[report]'" in result.stderr
    assert list(tmp_path.glob("*.html")) == []


def test_nothing_of_a_row_is_markup_and_nothing_is_fetched(job: Job) -> None:
    page = html_report(classified(job), events())
    assert HOSTILE not in page
    assert "<script" not in page
    assert not re.search(r"\b(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert html_report(classified(job), events()) == page
