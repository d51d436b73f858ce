"""Which rows each step takes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from finetuned_service.training.trainable import R

MICRO_BATCH_TOKENS = 1024
"""Tokens that go through the model at once, where rows are shorter: products are at full speed from some 500 on
(docs/decisions), and what is kept for the gradient grows with them."""


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


def micro_batches(rows: Sequence[R], most_rows: int, most_tokens: int = MICRO_BATCH_TOKENS) -> list[list[R]]:
    """The rows of a step in parts of like size, that run one after another.

    Rows of like length come together, so that they need few padding where rows stand side by side. A row of
    more than `most_tokens` is a part of its own. The same rows in any order give the same parts.

    Args:
        rows: at least one.
        most_rows: of a part.
        most_tokens: of a part.
    """
    ordered = sorted(rows, key=lambda row: (len(row.token_ids), tuple(row.token_ids)))
    total = sum(len(row.token_ids) for row in rows)
    # As few parts as can be, and not a small one at the end.
    wanted_tokens = total / math.ceil(total / most_tokens)
    parts: list[list[R]] = []
    part_tokens = 0
    for row in ordered:
        tokens = len(row.token_ids)
        last = parts[-1] if parts else []
        full = len(last) == most_rows or part_tokens >= wanted_tokens or part_tokens + tokens > most_tokens
        if full or not parts:
            parts.append([])
            part_tokens = 0
        parts[-1].append(row)
        part_tokens += tokens
    return parts
