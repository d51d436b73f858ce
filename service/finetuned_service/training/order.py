"""Which rows each step takes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


class RowOrder:
    """A shuffle of all rows after another, cut into batches.

    A function of the seed and the step alone, so that a resumed run needs only its step. Every step
    has the same number of rows; one may take the last of one epoch and the first of the next.
    """

    def __init__(self, rows: int, batch_rows: int, seed: int) -> None:
        self._rows, self._batch_rows, self._seed = rows, batch_rows, seed
        # A step touches at most two epochs at a time, unless there are fewer rows than a batch has.
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def rows_of_step(self, step: int) -> list[int]:
        """Indices of the rows of a step, both counted from 0."""
        first = step * self._batch_rows
        places = (divmod(place, self._rows) for place in range(first, first + self._batch_rows))
        return [self._epoch(epoch)[index] for epoch, index in places]

    def _shuffled(self, epoch: int) -> list[int]:
        # Of `random`, Python keeps only seeding with a string and `random()` stable between versions.
        draw = random.Random(f"{self._seed}:{epoch}")  # noqa: S311 - a reproducible shuffle, no secret
        keys = [draw.random() for _ in range(self._rows)]
        return sorted(range(self._rows), key=keys.__getitem__)


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in pieces of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
