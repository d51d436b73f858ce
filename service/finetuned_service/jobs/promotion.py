"""Whether `promote_if` moves the alias to the version that a job has made, and the sentence that says why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.jobs.specs import PromoteIf
from finetuned_service.jobs.task import TrainFinished, TrainTask
from finetuned_service.vocabulary import Metric


@dataclass(frozen=True, slots=True)
class Promotion:
    moves: bool
    why: str


def decide(
    wanted: PromoteIf | None, task: TrainTask, finished: TrainFinished, current: AdapterVersion | None
) -> Promotion:
    """Compare what was measured with what was asked for.

    Args:
        wanted: None asks for nothing.
        task: says which version was measured as the incumbent.
        finished: the measurements.
        current: the version that the alias points to now, at the moment of publication.
    """
    if wanted is None:
        return Promotion(moves=False, why="")
    obstacle = _own_obstacle(wanted, finished)
    if not obstacle and wanted.better_than_current:
        obstacle = _rival_obstacle(wanted, task, finished, current)
    if obstacle:
        return Promotion(moves=False, why=f"not moved: {obstacle}")
    new, old = _metric(finished.metrics, wanted.metric), _metric(finished.incumbent_metrics, wanted.metric)
    beaten = f", the version before has {old.value:.4g}" if old else ""
    figure = f"{wanted.metric} {new.value:.4g}" if new else ""
    return Promotion(moves=True, why=f"{wanted.alias} moved: {figure}{beaten}")


def _own_obstacle(wanted: PromoteIf, finished: TrainFinished) -> str:
    """What stands against the move in the new version's own figure, or ""."""
    name, new = wanted.metric, _metric(finished.metrics, wanted.metric)
    if new is None:
        return f"{name} was not measured"
    if not math.isfinite(new.value):
        return f"{name} is {new.value}"
    sign = 1 if new.higher_is_better else -1
    if wanted.minimum is not None and sign * new.value < sign * wanted.minimum:
        return f"{name} {new.value:.4g} is {'below' if sign > 0 else 'above'} {wanted.minimum:.4g}"
    return ""


def _rival_obstacle(
    wanted: PromoteIf, task: TrainTask, finished: TrainFinished, current: AdapterVersion | None
) -> str:
    """What stands against the move in the version that the alias points to, or ""."""
    if current is not None and current.manifest.base_digest != task.base_digest:
        return f"{wanted.alias} points to a version of another base, which this job could not measure"
    # Weights lie under their digest: the same directory is the same weights.
    if task.incumbent_directory != ("" if current is None else str(current.directory)):
        return (
            f"{wanted.alias} was changed while the job ran; where it points now was not measured. Compare the "
            "versions and move it with SetAlias"
        )
    if current is None:
        return ""
    name = wanted.metric
    new, old = _metric(finished.metrics, name), _metric(finished.incumbent_metrics, name)
    if new is None or old is None:
        return f"{name} of the current version was not measured"
    sign = 1 if new.higher_is_better else -1
    if sign * new.value <= sign * old.value:
        return f"{name} {new.value:.4g} does not beat {old.value:.4g} of the current version"
    return ""


def _metric(metrics: tuple[Metric, ...], name: str) -> Metric | None:
    return next((metric for metric in metrics if metric.name == name), None)
