"""What a job's events tell step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from finetuned.values.common import Task
from finetuned.values.events import JobEvent
from finetuned.values.jobs import Job
from finetuned.values.specs import Objective


@final
@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the steps of training."""

    title: str
    lines: Mapping[str, Mapping[int, float]]
    """By what each is; values by step, in the order of steps, finite."""
    mark: int | None = None
    """A step to mark: the best checkpoint's."""


@final
@dataclass(frozen=True, slots=True)
class Curves:
    """A step that ran twice, before and after an interruption, counts as it ran last."""

    loss: dict[int, float] = field(default_factory=dict[int, float])
    learning_rate: dict[int, float] = field(default_factory=dict[int, float])
    heldout: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    """Metrics of held-out rows between steps, by name."""

    @classmethod
    def of(cls, events: Sequence[JobEvent]) -> Curves:
        curves, training = cls(), False
        for event in events:
            if event.progress is not None:
                training = event.progress.phase == "training"
                if training and event.progress.step:
                    _put(curves.loss, event.progress.step, event.progress.loss)
                    _put(curves.learning_rate, event.progress.step, event.progress.learning_rate)
            # After training the engine that serves measures once more, on the best checkpoint.
            elif event.evaluation is not None and training and event.evaluation.subject == "adapter":
                for metric in event.evaluation.metrics:
                    _put(curves.heldout.setdefault(metric.name, {}), event.evaluation.step, metric.value)
        return curves

    def charts(self, job: Job) -> Iterator[Chart]:
        """Those that have points."""
        best = next((checkpoint.step for checkpoint in job.checkpoints if checkpoint.best), None)
        losses = {"training": self.loss, "held-out": self.heldout.get("loss", {})}
        losses = {name: values for name, values in losses.items() if values}
        if losses:
            yield Chart(_title(job), _sorted(losses), best)
        for name, values in self.heldout.items():
            if name != "loss":
                yield Chart(f"{name} on the held-out rows", _sorted({name: values}), best)
        if self.learning_rate:
            yield Chart("Learning rate", _sorted({"learning rate": self.learning_rate}))


def _title(job: Job) -> str:
    """The loss is a mean, of what and over what follows from what the job trains."""
    spec = job.train
    task = spec.task if spec else Task.UNKNOWN
    if task is Task.TEXT_CLASSIFICATION and _learns_numbers(job):
        return "Loss, squared error over the variance"
    if task in {Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION}:
        return "Loss, nats per row"
    if task is Task.TOKEN_CLASSIFICATION:
        return "Loss, nats per word"
    if task is Task.FEATURE_EXTRACTION:
        return _title_of_vectors(job)
    if spec and spec.objective is Objective.DPO:
        return "Loss, nats per pair"
    return "Loss, nats per supervised token"


def _learns_numbers(job: Job) -> bool:
    """By their figures; without held-out rows, by the report on the data: numbers are no labels."""
    figures, report = _figures(job), job.data_report
    if figures:
        return "mean_absolute_error" in figures
    return report is not None and not report.train_labels


def _title_of_vectors(job: Job) -> str:
    """Nothing of a job but its figures tells pairs with a score from others."""
    figures = _figures(job)
    if "spearman" in figures:
        return "Loss, squared error of the cosine per pair"
    return "Loss, nats per pair" if figures else "Loss per pair"


def _figures(job: Job) -> set[str]:
    return {metric.name for metric in (*job.metrics, *job.baseline_metrics)}


def _put(values: dict[int, float], step: int, value: float) -> None:
    if math.isfinite(value):
        values[step] = value


def _sorted(lines: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    return {name: dict(sorted(values.items())) for name, values in lines.items()}
