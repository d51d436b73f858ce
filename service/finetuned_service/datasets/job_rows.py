"""The rows of one kind that a job trains on, and those that it holds out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.kinds import AnyRow, DatasetRow, classes_of, labels_of
from finetuned_service.datasets.labels import differing_labels, listed
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
    dropped: int
    """Rows of both files that do not fit."""
    dropped_held_out: int
    """Of them those of a file that is held out."""


def read_job_rows(
    kind: type[AnyRow],
    train_path: Path,
    eval_path: Path | None,
    *,
    holdout_fraction: float,
    seed: int,
    fits: Callable[[AnyRow], bool] = lambda _: True,
) -> JobRows[AnyRow]:
    """Read the rows of a job.

    Args:
        kind: the class of row, such as `LabelledText`.
        train_path: canonical rows.
        eval_path: canonical rows to hold out; None takes `holdout_fraction` of the training rows.
        holdout_fraction: 0 to 0.5.
        seed: another seed holds out others.
        fits: whether a row is used; the others are left out first, so that what is held out is held out of what is used.

    Raises:
        InvalidData: rows of another kind, none that fits or none of a label, none can be held out, or the labels of the
            two parts differ.
    """
    lines, rows, dropped = _fitting(tuple(rows_of(train_path, kind)), fits)
    if not rows:
        raise InvalidData("all rows are longer than max_row_tokens and long_rows leaves them out; raise it")
    if lost := _labels(dropped) - _labels(rows):
        raise InvalidData(
            f"the {listed(lost)} has no row left: all of them are longer than max_row_tokens and long_rows leaves them out; "
            "raise it, or remove the label"
        )
    if eval_path is not None:
        held_out_lines, held_out, others = _fitting(tuple(rows_of(eval_path, kind)), fits)
        said = differing_labels(_labels(rows), _labels(held_out)) if held_out else ""
        if said:
            raise InvalidData(f"eval_dataset {said}")
        classes = _classes((*rows, *held_out))
        both = len(dropped) + len(others)
        return JobRows(rows, held_out, classes, lines, held_out_lines, both, len(others))
    kept, taken = split(rows, holdout_fraction, seed)
    return JobRows(
        train=tuple(rows[i] for i in kept),
        held_out=tuple(rows[i] for i in taken),
        classes=_classes(rows),
        train_lines=[lines[i] for i in kept],
        held_out_lines=[lines[i] for i in taken],
        dropped=len(dropped),
        dropped_held_out=0,
    )


def _fitting(
    rows: Sequence[AnyRow], fits: Callable[[AnyRow], bool]
) -> tuple[list[int], tuple[AnyRow, ...], list[AnyRow]]:
    """The lines of the rows that fit, these rows, and the others."""
    flags = [fits(row) for row in rows]
    return (
        [line for line, flag in enumerate(flags, 1) if flag],
        tuple(row for row, flag in zip(rows, flags, strict=True) if flag),
        [row for row, flag in zip(rows, flags, strict=True) if not flag],
    )


def _classes(rows: Iterable[DatasetRow]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows for name in classes_of(row)}))


def _labels(rows: Iterable[DatasetRow]) -> set[str]:
    return {label for row in rows for label in labels_of(row)}
