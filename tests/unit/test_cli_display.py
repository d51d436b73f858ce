"""How jobs are shown, and how values are printed."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from finetuned import JobEvent, JobState, JobStateReason, Metric, Notice, Severity, StateChanged
from finetuned.cli.curve import curve
from finetuned.cli.output import cell, duration, size, to_json
from finetuned.cli.progress import JobDisplay
from finetuned.values.events import Checkpoint, EvaluationFinished, Progress
from rich.console import Console


def progress(step: int, total: int) -> JobEvent:
    figures = Progress("training", step, total, 1.25, 300.0, 83.0, 1e-3, 100 * step)
    return JobEvent(step, None, progress=figures)


def show(*events: JobEvent, terminal: bool = False) -> str:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, color_system=None)
    with JobDisplay(console) as display:
        tell = display.job("redact [1]")
        for event in events:
            tell(event)
    return written.getvalue()


def test_without_a_terminal_a_tenth_is_a_line() -> None:
    told = show(*(progress(step, 200) for step in range(1, 201))).splitlines()
    assert len(told) == 11
    assert told[1] == "redact [1]  training 20/200  loss 1.2500  300 tokens/s  ETA 1:23"


def test_a_phase_without_steps_is_told_once() -> None:
    storing = Progress("storing", 0, 0, 0.0, 0.0, None, 0.0, 0)
    told = show(JobEvent(1, None, progress=storing), JobEvent(2, None, progress=storing))
    assert told == "redact [1]  storing\n"


def test_on_a_terminal_there_is_a_bar() -> None:
    told = show(progress(50, 200), terminal=True)
    assert "redact [1]" in told
    assert "50/200" in told
    assert "loss 1.2500  300 tokens/s  ETA 1:23" in told


def test_the_curve_of_the_loss_is_drawn_live() -> None:
    told = show(*(training(step, 8.0 / step) for step in range(1, 31)), terminal=True)
    last = told.rpartition("loss\n")[2].splitlines()
    assert last[0].startswith("8.000 █")
    assert "step 1" in told
    assert "█" not in show(training(1, 2.0), training(2, float("nan")), terminal=True).rpartition("1/30")[2]


def training(step: int, loss: float) -> JobEvent:
    return JobEvent(step, None, progress=Progress("training", step, 30, loss, 0.0, None, 1e-3, step))


def test_a_curve_has_its_largest_value_on_top_and_its_smallest_at_the_bottom() -> None:
    assert curve([(1, 4.0), (2, 2.0), (3, 1.0)], width=3, height=2) == [
        "4.000 █  ",
        "1.000 █▆▁",
        "      step 1 3",
    ]


def test_more_points_than_columns_are_means() -> None:
    lines = curve([(step, float(step % 2)) for step in range(1000)], width=10, height=1)
    assert lines[0] == "0.500 " + "▁" * 10
    assert curve([(1, 2.0)], width=10, height=4) == []


def test_what_happens_to_a_job_is_told() -> None:
    lost = StateChanged(JobState.QUEUED, JobStateReason.WORKER_LOST, 2)
    told = show(
        JobEvent(1, None, state=lost),
        JobEvent(2, None, evaluation=EvaluationFinished("adapter", 40, (Metric("loss", 0.5, False),))),
        JobEvent(3, None, checkpoint=Checkpoint(40, 0.5, best=True)),
        JobEvent(4, None, checkpoint=Checkpoint(50, None, best=False)),
        JobEvent(5, None, notice=Notice(Severity.WARNING, "validation loss [turns]")),
        JobEvent(6, None),
    )
    assert told.splitlines() == [
        "redact [1]  queued (worker_lost, attempt 2)",
        "redact [1]  adapter at step 40: loss 0.5",
        "redact [1]  checkpoint at step 40, held-out loss 0.5000, the best so far",
        "redact [1]  checkpoint at step 50",
        "redact [1]  validation loss [turns]",
    ]


def test_two_jobs_at_once() -> None:
    written = io.StringIO()
    with JobDisplay(Console(file=written, width=120)) as display:
        first, second = display.job("a"), display.job("b")
        first(progress(1, 1))
        second(progress(1, 1))
    assert [line.split()[0] for line in written.getvalue().splitlines()] == ["a", "b"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (269_000_000, "256.5 MiB"), (5 << 40, "5.0 TiB")],
)
def test_size(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, ""), (0.4, "0:00"), (83.0, "1:23"), (3723.0, "1:02:03")]
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_cells() -> None:
    assert [cell(item) for item in (None, True, False, 3, 0.123456, "x")] == [
        "",
        "yes",
        "no",
        "3",
        "0.1235",
        "x",
    ]


def test_json() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    event = JobEvent(1, moment, state=StateChanged(JobState.QUEUED, JobStateReason.UNKNOWN, 1))
    assert to_json([event]) == [
        {
            "number": 1,
            "time": "2026-01-02T00:00:00+00:00",
            "state": {"state": "QUEUED", "reason": "UNKNOWN", "attempt": 1},
            "progress": None,
            "evaluation": None,
            "checkpoint": None,
            "notice": None,
        }
    ]
