"""The data report: token figures, repeated rows, rows that leak into the evaluation."""

from __future__ import annotations

from finetuned_service.datasets.report import data_report
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.vocabulary import DataReport


def row(*token_ids: int, supervised: int = 1) -> EncodedRow:
    """A row whose last `supervised` ids carry loss."""
    return EncodedRow(
        list(token_ids), [place >= len(token_ids) - supervised for place in range(len(token_ids))]
    )


def test_figures() -> None:
    train = [row(1, 2, 3), row(4, 5, supervised=2), row(1, 2, 3), row(1, 2, 3), row(9)]
    held_out = [row(4, 5), row(4, 5), row(7, 8), row(3, 2, 1)]
    assert data_report(train, held_out, truncated_rows=3, dropped_rows=2) == DataReport(
        train_rows=5,
        eval_rows=4,
        train_tokens=12,
        supervised_tokens=6,
        mean_row_tokens=2.4,
        longest_row_tokens=3,
        truncated_rows=3,
        dropped_rows=2,
        duplicate_rows=2,
        leaked_rows=2,
    )


def test_ids_do_not_run_into_each_other() -> None:
    report = data_report([row(1, 23), row(12, 3), row(1, 2, 3)], [row(123)])
    assert (report.duplicate_rows, report.leaked_rows) == (0, 0)


def test_no_rows() -> None:
    assert data_report([], []) == DataReport(
        train_rows=0,
        eval_rows=0,
        train_tokens=0,
        supervised_tokens=0,
        mean_row_tokens=0.0,
        longest_row_tokens=0,
    )
