"""The data report: token figures, repeated rows, rows that leak into the evaluation."""

from __future__ import annotations

from finetuned_service.datasets.report import data_report, with_rows
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.values import LabelledText, Text
from finetuned_service.vocabulary import DataReport, LabelCount, LengthSummary


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


def report(**counts: int) -> DataReport:
    zero = {"train_tokens": 0, "supervised_tokens": 0, "mean_row_tokens": 0.0, "longest_row_tokens": 0}
    return DataReport.model_validate({"train_rows": 12, "eval_rows": 2, **zero, **counts})


def test_rows_tell_labels_lengths_and_what_nearly_leaks() -> None:
    train = [LabelledText(f"t{n}", "a") for n in range(11)] + [LabelledText("u", "b")]
    found = with_rows(report(), train, [LabelledText("T1 ", "b"), LabelledText("v", "a")], range(1, 13))
    assert found.similar_leaked_rows == 1
    assert found.row_tokens == LengthSummary(median=6, p90=11, p95=12, p99=12, longest=12, mean=6.5)
    assert found.train_labels == (LabelCount(label="a", count=11), LabelCount(label="b", count=1))
    assert found.eval_labels == (LabelCount(label="a", count=1), LabelCount(label="b", count=1))
    assert found.imbalance_ratio == 11.0
    assert found.warnings == (
        "1 of 2 held-out rows are also trained on, as they are or nearly: the figures will be better than the adapter",
        "the label 'a' is 11 times as frequent as 'b'",
    )


def test_what_is_cut_or_left_out_or_repeated_is_warned_of_where_it_is_much() -> None:
    rows = [Text(str(n)) for n in range(12)]
    assert (
        with_rows(report(truncated_rows=1, dropped_rows=1, duplicate_rows=1), rows, [], [1] * 12).warnings
        == ()
    )
    found = with_rows(report(truncated_rows=2, dropped_rows=3, duplicate_rows=4), rows, [], [1] * 12)
    assert [warning.split()[0] for warning in found.warnings] == ["2", "3", "4"]
