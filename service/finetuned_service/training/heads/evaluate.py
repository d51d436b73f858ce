"""Held-out rows answered by the engine that serves: an incumbent, the adapter; and who does not look at them.

The plain base has no labels, so the baseline is the best answer that is the same for every row: the label that is
most frequent in training, or the mean number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetuned_service.adapters.head import Head, Problem
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.jobs.pace import Phase
from finetuned_service.training.encoded import encoded
from finetuned_service.training.heads.confusion import confusion_matrix
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.heads.features import request_of
from finetuned_service.training.heads.model import summed_loss, targets_of
from finetuned_service.training.heads.scores import (
    accuracy,
    entity_f1,
    f1_scores,
    pearson,
    spearman,
)
from finetuned_service.training.heads.unit import Unit
from finetuned_service.vocabulary import ConfusionMatrix, Metric, Task

Outputs = list[NDArray[np.float32]]
_SHOWN_LABELS = 5


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What one subject says of the held-out rows."""

    metrics: tuple[Metric, ...]
    answers: tuple[str, ...]
    """For people, one for each row."""
    confusion: ConfusionMatrix | None = None
    """Of all rows, or of the tags in them; None where a row has no one label."""


def answered(
    base_directory: Path,
    adapter: AdapterHandle,
    examples: Sequence[Example],
    head: Head,
    threads: int,
    device: str = "cpu",
    phase: Phase | None = None,
) -> Outputs:
    """The outputs of the adapter's head for each example: `[1, outputs]`, or a row for each of its places. `phase` has a
    step for each example.

    Raises:
        Stopped: the process was asked to stop.
    """
    requests = (replace(request_of(example, head), adapter=adapter) for example in examples)
    found = encoded(base_directory, requests, threads, device, phase)
    return [
        found[example.number][list(example.places)] if example.places else found[example.number]
        for example in examples
    ]


def why_incomparable(own: Head | None, wanted: Head) -> str:
    """What a head answers that another does not, so that their figures say different things; empty where they compare.
    The order of labels and the pooling are a head's own affair.
    """
    if own is None:
        return "has no head"
    if own.task is not wanted.task:
        return f"is for {own.task}, the rows are for {wanted.task}"
    if own.problem is not wanted.problem:
        return f"has a head for {own.problem}, the rows want one for {wanted.problem}"
    told = [
        f"{said} {', '.join(map(repr, labels[:_SHOWN_LABELS]))}"
        + (f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else "")
        for said, labels in (
            ("has labels that the rows have not:", sorted(set(own.labels) - set(wanted.labels))),
            ("lacks labels of the rows:", sorted(set(wanted.labels) - set(own.labels))),
        )
        if labels
    ]
    return "; it ".join(told)


def in_order_of(wanted: Head, own: Head, outputs: Outputs) -> Outputs:
    """The outputs of a head with the same labels, in the order of `wanted`."""
    places = [own.labels.index(label) for label in wanted.labels]
    return [rows[:, places] for rows in outputs] if places else outputs


def without_looking(train: Sequence[Example], examples: Sequence[Example], head: Head) -> Outputs:
    """The outputs of who knows how often each answer is right, and nothing else."""
    targets = np.array([target for example in train for target in example.targets])
    if head.problem is Problem.MULTI_LABEL:
        share = np.clip(targets.reshape(len(train), -1).mean(0), 1e-6, 1 - 1e-6)
        outputs = np.log(share / (1 - share))
    elif head.problem is Problem.REGRESSION:
        outputs = np.array([targets.mean()])
    else:
        counts = np.bincount(targets.astype(np.int64), minlength=head.outputs)
        outputs = np.log(np.maximum(counts, 1e-6) / counts.sum())
    row = outputs.astype(np.float32)
    return [np.repeat(row[None], example.supervised_tokens, 0) for example in examples]


def scored(outputs: Outputs, examples: Sequence[Example], head: Head, unit: Unit | None = None) -> HeadResult:
    """The figures of the head's task; at least one example. The loss is in the unit, as in training."""
    rows: Any = np.concatenate(outputs)
    targets = targets_of(examples, head)
    given, exact = torch.from_numpy(rows).double(), _exact(targets)
    if unit is not None and head.problem is Problem.REGRESSION:
        given, exact = given / unit.spread, exact / unit.spread
    total = float(summed_loss(given, exact, head.problem))
    losses = [Metric(name="loss", value=total / len(targets), higher_is_better=False)]
    confusion = None
    if head.problem is Problem.REGRESSION:
        expected, found = targets.numpy()[:, 0].astype(np.float64), rows[:, 0].astype(np.float64)
        figures = {"spearman": spearman(expected, found), "pearson": pearson(expected, found)}
        off = float(np.abs(found - expected).mean())
        losses.append(Metric(name="mean_absolute_error", value=off, higher_is_better=False))
        answers = tuple(f"{value:.4g}" for value in found)
    elif head.problem is Problem.MULTI_LABEL:
        flags, told = targets.numpy() > 0.5, rows > 0
        macro, micro = f1_scores(flags, told)
        figures = {"micro_f1": micro, "macro_f1": macro, "exact_match": float((flags == told).all(1).mean())}
        answers = tuple(_names(head, row) for row in told)
    else:
        found = rows.argmax(1)
        figures, answers = _of_labels(found, targets.numpy(), outputs, examples, head)
        confusion = confusion_matrix(targets.numpy(), found, head.labels)
    metrics = tuple(Metric(name=name, value=value, higher_is_better=True) for name, value in figures.items())
    return HeadResult((*metrics, *losses), answers, confusion)


def expected_answer(example: Example, head: Head) -> str:
    """The row's own answer, for people."""
    match head.problem:
        case Problem.REGRESSION:
            return f"{example.targets[0]:.4g}"
        case Problem.MULTI_LABEL:
            return _names(head, np.array(example.targets) > 0.5)
        case Problem.SINGLE_LABEL:
            return " ".join(head.labels[int(target)] for target in example.targets)


def _of_labels(
    found: NDArray[np.int64],
    targets: NDArray[np.int64],
    outputs: Outputs,
    examples: Sequence[Example],
    head: Head,
) -> tuple[dict[str, float], tuple[str, ...]]:
    labels = np.arange(head.outputs)
    figures = {"accuracy": accuracy(targets, found)}
    told = [[head.labels[i] for i in rows.argmax(1)] for rows in outputs]
    if head.task is Task.TOKEN_CLASSIFICATION:
        expected = [[head.labels[int(target)] for target in example.targets] for example in examples]
        figures = {"entity_f1": entity_f1(expected, told), **figures}
    else:
        macro, _ = f1_scores(targets[:, None] == labels, found[:, None] == labels)
        figures["macro_f1"] = macro
    return figures, tuple(" ".join(row) for row in told)


def _exact(targets: torch.Tensor) -> torch.Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _names(head: Head, flags: Any) -> str:
    return ", ".join(label for label, on in zip(head.labels, flags, strict=True) if on) or "none"
