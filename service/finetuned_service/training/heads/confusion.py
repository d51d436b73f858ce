"""Which labels were given where which are right, of all that was evaluated. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuned_service.vocabulary import ConfusionMatrix

MOST_ROWS = 50
"""A record is written anew with every report, and a larger table is read by nobody."""


def confusion_matrix(
    expected: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]], labels: Sequence[str]
) -> ConfusionMatrix:
    """Counts over all of `expected` and `found [N]`, which are places in `labels`.

    Where there are more labels than rows, those that are right most often have one each, in the order of the labels,
    and all others share the last.
    """
    size, group = len(labels), np.arange(len(labels))
    kept = group
    if len(labels) > MOST_ROWS:
        frequency = np.bincount(expected, minlength=len(labels))
        kept = np.sort(np.argsort(-frequency, kind="stable")[: MOST_ROWS - 1])
        size, group = MOST_ROWS, np.full(len(labels), MOST_ROWS - 1)
        group[kept] = np.arange(MOST_ROWS - 1)
    counts = np.bincount(group[expected] * size + group[found], minlength=size * size)
    return ConfusionMatrix(
        labels=tuple(labels[place] for place in kept.tolist()),
        counts=tuple(counts.tolist()),
        other_labels=len(labels) - len(kept),
    )
