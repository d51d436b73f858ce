"""What was counted in rows, as tables: of a dataset, and of the parts that a job trains on and holds out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from finetuned import DataReport, DatasetReport, LabelCount, LengthSummary
from finetuned.cli.output import Cell, err, print_facts, print_table

_SHOWN_LABELS = 20


def show_dataset_report(report: DatasetReport) -> None:
    """Lengths, labels and repeated rows of a dataset, then what should be looked at."""
    _show_lengths("characters", report.characters)
    _show_labels({"count": report.labels})
    print_facts(
        "",
        {
            "repeated rows": report.duplicate_rows or None,
            "rows that contradict": report.conflicting_rows or None,
            "imbalance": imbalance(report.imbalance_ratio),
        },
    )
    _warn(report.warnings)


def show_data_report(report: DataReport) -> None:
    """Lengths and labels of a job's rows, then what should be looked at."""
    _show_lengths("tokens", report.row_tokens)
    _show_labels({"to train on": report.train_labels, "held out": report.eval_labels})
    print_facts(
        "",
        {
            "cut rows": report.truncated_rows or None,
            "left out for their length": report.dropped_rows or None,
            "nearly leaked rows": report.similar_leaked_rows or None,
            "imbalance": imbalance(report.imbalance_ratio),
        },
    )
    _warn(report.warnings)


def imbalance(ratio: float) -> str | None:
    """How far apart labels are in number; None where they are not."""
    return f"the most frequent label is {ratio:.1f} times the rarest" if ratio > 1 else None


def _show_lengths(unit: str, found: LengthSummary | None) -> None:
    if found is None or not found.longest:
        return
    row: list[Cell] = [found.mean, found.median, found.p90, found.p95, found.p99, found.longest]
    print_table(f"Length of rows in {unit}", ["mean", "median", "90%", "95%", "99%", "longest"], [row])


def _show_labels(columns: dict[str, Sequence[LabelCount]]) -> None:
    first = next(iter(columns.values()))
    if not first:
        return
    counts = [{item.label: item.count for item in found} for found in columns.values()]
    shown = [[item.label, *(count.get(item.label, 0) for count in counts)] for item in first[:_SHOWN_LABELS]]
    more = f" ({_SHOWN_LABELS} of {len(first)})" if len(first) > _SHOWN_LABELS else ""
    print_table(f"Labels{more}", ["label", *columns], shown)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        err().print(f"[yellow]warning[/yellow] {escape(warning)}")
