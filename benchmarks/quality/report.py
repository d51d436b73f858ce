"""Comparisons as a table for people, as Markdown for README.md, and as entries of the file of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.compare import Comparison
from benchmarks.report import print_rows, save_entries

COLUMNS = (
    "figure",
    "metric",
    "ours",
    "reference",
    "ratio",
    "curve apart",
    "seconds",
    "MB",
    "parameters",
    "kB",
)
_ALIKE = 0.01
Entry = Mapping[str, Any]


def save(path: Path, found: Sequence[Comparison], busy_cores: float) -> None:
    """Put them in the file; those that are there and were not measured now stay."""
    save_entries(path, [asdict(line) for line in found], busy_cores)


def print_table(title: str, found: Sequence[Comparison], missing: Sequence[str]) -> None:
    """All of them, and what could not be measured."""
    rows = [(*cells(asdict(line)), line.verdict) for line in found]
    notes = {line.figure: f"beside {line.reference_name}; {line.note}" for line in found if line.note}
    print_rows(title, (*COLUMNS, ""), rows, notes, missing)


def markdown(entries: Iterable[Entry]) -> str:
    """The same as a table of Markdown."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(cells(entry) for entry in entries)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cells(entry: Entry) -> tuple[str, ...]:
    """One line; two numbers are ours and the reference's."""
    ours, reference = entry["ours"], entry["reference"]
    return (
        entry["figure"],
        entry["metric"],
        _spread(ours),
        _spread(reference),
        f"{entry['ratio']:.3f}",
        _curve(entry),
        f"{ours['seconds']:.1f} / {reference['seconds']:.1f}",
        f"{ours['peak_mb']:,.0f} / {reference['peak_mb']:,.0f}",
        _one_or_both(ours["parameters"], reference["parameters"]),
        _one_or_both(round(ours["adapter_bytes"] / 1e3), round(reference["adapter_bytes"] / 1e3)),
    )


def _curve(entry: Entry) -> str:
    """How far apart, beside how far the reference is from itself where that was asked."""
    distance, own = entry["curve_distance"], entry.get("reference_curve_distance")
    if distance is None:
        return ""
    beside = "" if own is None else f" / {own:.1g}"
    return f"{distance:.1g}{beside} of {entry['first_loss']:.2g}"


def _spread(side: Mapping[str, Any]) -> str:
    low, high = side["score_minimum"], side["score_maximum"]
    spread = "" if low == high else f" ({low:.3f} to {high:.3f})"
    return f"{side['score']:.3f}{spread}"


def _one_or_both(ours: int, reference: int) -> str:
    """Two only where they differ by more than what files say of themselves."""
    alike = abs(ours - reference) <= max(1, _ALIKE * reference)
    return f"{ours:,}" if alike else f"{ours:,} / {reference:,}"
