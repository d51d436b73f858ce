"""Figures of a task, by numpy alone; `tests/unit/test_training_scores.py` compares them with scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuned_service.text.entities import spans_of

Numbers = NDArray[Any]


def accuracy(expected: Numbers, found: Numbers) -> float:
    return float((expected == found).mean())


def f1_scores(expected: Numbers, found: Numbers) -> tuple[float, float]:
    """Macro and micro F1 of flags `[N, labels]`; a label that neither has counts as 0, as in scikit-learn."""
    hits = (expected & found).sum(0)
    told = expected.sum(0) + found.sum(0)
    each = np.divide(2 * hits, told, out=np.zeros(len(hits)), where=told > 0)
    all_told = int(told.sum())
    return float(each.mean()), float(2 * hits.sum() / all_told) if all_told else 0.0


def entity_f1(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Micro F1 of whole entities, as conlleval counts: a span counts if its label and both ends are right."""
    hits = told = 0
    for row, (right, answer) in enumerate(zip(expected, found, strict=True)):
        wanted = {(row, span) for span in spans_of(right)}
        given = {(row, span) for span in spans_of(answer)}
        hits += len(wanted & given)
        told += len(wanted) + len(given)
    return 2 * hits / told if told else 1.0


def pearson(expected: Numbers, found: Numbers) -> float:
    """Linear correlation; 0 where one side does not vary."""
    x, y = expected - expected.mean(), found - found.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def spearman(expected: Numbers, found: Numbers) -> float:
    """Correlation of ranks, those of equal values averaged."""
    return pearson(_ranks(expected), _ranks(found))


def _ranks(values: Numbers) -> Numbers:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return ((ends - counts + ends - 1) / 2)[inverse]
