"""What a job is told about its data before it starts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from finetuned_service.text.supervision import EncodedRow
from finetuned_service.vocabulary import DataReport


def data_report(
    train: Sequence[EncodedRow],
    held_out: Sequence[EncodedRow],
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


def _key(row: EncodedRow) -> bytes:
    """Sixteen bytes for a row, so that a million rows do not stay in memory twice."""
    return hashlib.blake2b(array("q", row.token_ids).tobytes(), digest_size=16).digest()
