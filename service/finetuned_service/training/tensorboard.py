"""What a TrainJob reports, also as TensorBoard's event files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

from finetuned_service.jobs.events import EvaluationFinished, Progress
from finetuned_service.jobs.process import ReportFunction
from finetuned_service.jobs.task import TrainFinished
from finetuned_service.training.event_file import EventFile
from finetuned_service.vocabulary import Metric, Value


class TensorBoardLog:
    """Passes reports on to `report`, and writes their figures; a context manager.

    Tags: `train/loss`, `train/learning_rate`, `train/tokens_per_second` at each step; `heldout/NAME` of evaluations
    between steps; `baseline/NAME` and `result/NAME` of the plain base and of the adapter, measured as they are served.
    An attempt that goes on from a checkpoint replaces the steps that it repeats.

    Args:
        directory: made when there is something to write; earlier attempts' files may be in it.
        report: takes everything.

    Raises:
        OSError: where it is called, if the figures cannot be written; a full disk suspends the job, as with a checkpoint.
    """

    def __init__(self, directory: Path, report: ReportFunction) -> None:
        self._directory, self._report = directory, report
        self._file: EventFile | None = None
        self._baseline: tuple[Metric, ...] = ()
        self._training = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            # What ends the run already is what is told.
            with suppress(OSError) if kind is not None else nullcontext():
                self._file.close()

    def __call__(self, report: Value) -> None:
        self._report(report)
        match report:
            case Progress(phase="training", step=step) if step > 0:
                self._training = True
                self._write("train", step, _figures(report))
            case Progress():
                self._training = False
            case EvaluationFinished(subject="baseline"):
                self._baseline = report.metrics
            case EvaluationFinished(subject="adapter") if self._training:
                self._write("heldout", report.step, _values(report.metrics))
            case TrainFinished(step=step):
                if self._file is None and (report.metrics or report.baseline_metrics):
                    # An attempt that only measured: what those before it wrote of their steps stays.
                    self._opened(step + 1)
                self._write("baseline", 0, _values(self._baseline or report.baseline_metrics))
                self._write("result", step, _values(report.metrics))
            case _:
                pass

    def _write(self, group: str, step: int, figures: Iterable[tuple[str, float]]) -> None:
        for name, value in figures:
            if math.isfinite(value):
                self._opened(step).add_scalar(f"{group}/{name}", value, step)

    def _opened(self, step: int) -> EventFile:
        """The file; at first what earlier attempts wrote from this step on is taken back."""
        if self._file is None:
            self._file = EventFile(self._directory)
            self._file.start_at(step)
        return self._file


def _figures(progress: Progress) -> Iterable[tuple[str, float]]:
    yield "loss", progress.loss
    yield "learning_rate", progress.learning_rate
    yield "tokens_per_second", progress.tokens_per_second


def _values(metrics: Iterable[Metric]) -> Iterable[tuple[str, float]]:
    return ((metric.name, metric.value) for metric in metrics)
