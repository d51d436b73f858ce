"""The rows of one kind that a job trains on, and those that it holds out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.kinds import AnyRow, DatasetRow, classes_of, labels_of
from finetuned_service.datasets.labels import differing_labels
from finetuned_service.datasets.rows import rows_of
from finetuned_service.errors import InvalidData


@dataclass(frozen=True, slots=True)
class JobRows(Generic[AnyRow]):
    """Rows of one kind, each part in the order of its file."""

    train: tuple[AnyRow, ...]
    held_out: tuple[AnyRow, ...]
    classes: tuple[str, ...]
    """What a head has to tell apart, sorted: the labels of both parts, or their tags (with `O`); empty for rows
    without any."""
    train_lines: Sequence[int]
    """Where each row stands in its file, from 1 on."""
    held_out_lines: Sequence[int]


def read_job_rows(
    kind: type[AnyRow], train_path: Path, eval_path: Path | None, *, holdout_fraction: float, seed: int
) -> JobRows[AnyRow]:
    """Read the rows of a job.

    Args:
        kind: the class of row, such as `LabelledText`.
        train_path: canonical rows.
        eval_path: canonical rows to hold out; None takes `holdout_fraction` of the training rows.
        holdout_fraction: 0 to 0.5.
        seed: another seed holds out others.

    Raises:
        InvalidData: rows of another kind, none can be held out, or the labels of the two parts differ.
    """
    rows = tuple(rows_of(train_path, kind))
    if eval_path is not None:
        held_out = tuple(rows_of(eval_path, kind))
        said = differing_labels(_labels(rows), _labels(held_out))
        if said:
            raise InvalidData(f"eval_dataset {said}")
        classes = _classes((*rows, *held_out))
        return JobRows(rows, held_out, classes, range(1, len(rows) + 1), range(1, len(held_out) + 1))
    kept, taken = split(rows, holdout_fraction, seed)
    return JobRows(
        train=tuple(rows[i] for i in kept),
        held_out=tuple(rows[i] for i in taken),
        classes=_classes(rows),
        train_lines=[i + 1 for i in kept],
        held_out_lines=[i + 1 for i in taken],
    )


def _classes(rows: Iterable[DatasetRow]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows for name in classes_of(row)}))


def _labels(rows: Iterable[DatasetRow]) -> set[str]:
    return {label for row in rows for label in labels_of(row)}
