"""What a job is told about its data before it starts."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from finetuned_service.datasets.dataset_report import imbalance_ratio, label_counts, length_summary
from finetuned_service.datasets.fingerprint import fingerprint
from finetuned_service.datasets.kinds import DatasetRow, classes_of
from finetuned_service.text.values import LabelledTokens
from finetuned_service.vocabulary import DataReport, LabelCount

_MANY = 0.1
"""From this part of the rows on, a warning is due."""
_MUCH = 10.0
"""From this ratio of the most frequent label to the rarest on."""


class EncodedIds(Protocol):
    """A row as ids."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def supervised_tokens(self) -> int: ...


def data_report(
    train: Sequence[EncodedIds],
    held_out: Sequence[EncodedIds],
    *,
    truncated_rows: int = 0,
    dropped_rows: int = 0,
) -> DataReport:
    """Count tokens, repeated rows, and held-out rows that are also trained on.

    Rows are compared as ids, so two that differ only in what the tokenizer or the length limit takes
    away count as equal. Token figures are those of the training rows.

    Args:
        train: the rows as they will be trained on, after truncation.
        held_out: the rows of the evaluation.
        truncated_rows: how many rows were cut to the longest length.
        dropped_rows: how many were left out for their length.
    """
    lengths = [len(row.token_ids) for row in train]
    seen = {_key(row) for row in train}
    return DataReport(
        train_rows=len(train),
        eval_rows=len(held_out),
        train_tokens=sum(lengths),
        supervised_tokens=sum(row.supervised_tokens for row in train),
        mean_row_tokens=sum(lengths) / len(lengths) if lengths else 0.0,
        longest_row_tokens=max(lengths, default=0),
        truncated_rows=truncated_rows,
        dropped_rows=dropped_rows,
        duplicate_rows=len(train) - len(seen),
        leaked_rows=sum(_key(row) in seen for row in held_out),
    )


def with_rows(
    report: DataReport,
    train: Sequence[DatasetRow],
    held_out: Sequence[DatasetRow],
    row_tokens: Iterable[int],
) -> DataReport:
    """The report with what the rows themselves tell: of any kind, whatever a model reads of them.

    Args:
        report: what was counted in ids.
        train: the rows that are trained on.
        held_out: the rows of the evaluation, also those that are too long for it.
        row_tokens: lengths of the rows trained on, before any was cut.
    """
    seen = {fingerprint(row) for row in train}
    labels = _labels(train)
    report = report.model_copy(
        update={
            "similar_leaked_rows": sum(fingerprint(row) in seen for row in held_out),
            "row_tokens": length_summary(array("q", row_tokens)),
            "train_labels": labels,
            "eval_labels": _labels(held_out),
            "imbalance_ratio": imbalance_ratio(labels),
        }
    )
    return report.model_copy(update={"warnings": tuple(_warnings(report))})


def _labels(rows: Sequence[DatasetRow]) -> tuple[LabelCount, ...]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.tags if isinstance(row, LabelledTokens) else classes_of(row))
    return label_counts(counts)


def _warnings(report: DataReport) -> Iterable[str]:
    leaked = max(report.leaked_rows, report.similar_leaked_rows)
    if leaked:
        yield (
            f"{leaked} of {report.eval_rows} held-out rows are also trained on, as they are or nearly: the figures "
            "will be better than the adapter"
        )
    if report.truncated_rows > _MANY * report.train_rows:
        yield f"{report.truncated_rows} rows are cut: raise max_row_tokens, if what is at their ends matters"
    if report.dropped_rows > _MANY * report.train_rows:
        yield f"{report.dropped_rows} rows are too long and left out: raise max_row_tokens, or shorten them"
    if report.duplicate_rows > _MANY * report.train_rows:
        yield f"{report.duplicate_rows} of {report.train_rows} training rows repeat an earlier one"
    if report.imbalance_ratio >= _MUCH and "O" not in {count.label for count in report.train_labels}:
        yield (
            f"the label {report.train_labels[0].label!r} is {report.imbalance_ratio:.0f} times as frequent as "
            f"{report.train_labels[-1].label!r}"
        )


def _key(row: EncodedIds) -> bytes:
    """Sixteen bytes for a row, so that a million rows do not stay in memory twice."""
    return hashlib.blake2b(array("q", row.token_ids).tobytes(), digest_size=16).digest()
