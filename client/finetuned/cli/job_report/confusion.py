"""Which labels were taken for which, over all held-out rows, as tables of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from finetuned.values.common import ConfusionMatrix
from finetuned.values.jobs import Job


@final
@dataclass(frozen=True, slots=True)
class ConfusionTable:
    subject: str
    """Who was measured."""
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row for what is right, a column for what was given."""

    @property
    def most(self) -> int:
        return max(1, *(count for row in self.counts for count in row))

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def recall(self) -> tuple[str, ...]:
        """Of what has a label, the part that was given it."""
        return _shares(self.counts)

    @property
    def precision(self) -> tuple[str, ...]:
        """Of what was given a label, the part that has it."""
        return _shares(tuple(zip(*self.counts, strict=True)))


def confusion_tables(job: Job) -> Iterator[ConfusionTable]:
    """None for tasks that give no single label."""
    for subject, matrix in (("this version", job.confusion), ("plain base", job.baseline_confusion)):
        if matrix is not None:
            yield ConfusionTable(subject, _labels(matrix), matrix.rows)


def _labels(matrix: ConfusionMatrix) -> tuple[str, ...]:
    if not matrix.other_labels:
        return matrix.labels
    return (*matrix.labels, f"{matrix.other_labels} others")


def _shares(counts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    totals = [sum(row) for row in counts]
    return tuple(
        f"{row[i] / total:.0%}" if total else ""
        for i, (row, total) in enumerate(zip(counts, totals, strict=True))
    )
