"""Which labels were taken for which, counted over the held-out rows that a job's record shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

from finetuned.values.common import Task
from finetuned.values.jobs import Job

MOST_LABELS = 30
"""More would be no table that anybody reads."""


@final
@dataclass(frozen=True, slots=True)
class Confusion:
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row for what is right, a column for what was answered."""

    @property
    def most(self) -> int:
        return max(1, *(count for row in self.counts for count in row))

    @property
    def rows(self) -> int:
        return sum(map(sum, self.counts))


def confusion_of(job: Job) -> Confusion | None:
    """None for tasks that give no single label, and for more labels than a table can show."""
    single = job.train is not None and job.train.task in {Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION}
    if not single or not job.samples or job.data_report is None or not job.data_report.train_labels:
        return None
    counted = Counter((sample.expected, sample.answer) for sample in job.samples)
    labels = tuple(sorted({label for pair in counted for label in pair}))
    if len(labels) > MOST_LABELS:
        return None
    return Confusion(labels, tuple(tuple(counted[right, given] for given in labels) for right in labels))
