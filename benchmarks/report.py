"""Figures as a table for people and as JSON for everyone else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.machine import machine
from benchmarks.targets import verdict

PLAIN_COLUMNS = 170
"""Of the table where there is no terminal to fit into."""
_COLOURS = {"met": "green", "missed": "red"}


def print_table(title: str, figures: Sequence[Figure], missing: Sequence[str]) -> None:
    """All figures, the target beside each, and what could not be measured."""
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        theirs = "" if figure.peer is None else _spread(figure.peer, figure.peer_minimum, figure.peer_maximum)
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
        ours = _spread(figure.value, figure.minimum, figure.maximum)
        rows.append(
            (figure.figure, ours, figure.unit, figure.peer_name, theirs, ratio, *verdict(figure)),
        )
    columns = ("figure", "ours", "unit", "beside", "theirs", "ratio", "target", "")
    print_rows(title, columns, rows, {figure.figure: figure.note for figure in figures}, missing)


def print_rows(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Mapping[str, str],
    missing: Iterable[str],
) -> None:
    """A table whose last column is a verdict; under it what there is to say of some figures, and what is missing."""
    table = Table(*columns, title=title)
    for *cells, word in rows:
        table.add_row(*cells, f"[{_COLOURS[word]}]{word}[/]" if word in _COLOURS else word)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_COLUMNS)
    console.print(table)
    for figure, note in notes.items():
        if note:
            console.print(f"{figure}: {note}", highlight=False)
    for line in missing:
        console.print(f"[red]missing[/] {line}", highlight=False)


def _spread(median: float, minimum: float | None, maximum: float | None) -> str:
    if minimum is None or maximum is None or minimum == maximum:
        return f"{median:,.1f}"
    return f"{median:,.1f} ({minimum:,.1f} to {maximum:,.1f})"


def save(path: Path, figures: Sequence[Figure], busy_cores: float) -> None:
    """Put the figures in the file; those that are there and were not measured now stay."""
    judged = [(figure, verdict(figure)) for figure in figures]
    entries = [asdict(figure) | {"target": target, "verdict": word} for figure, (target, word) in judged]
    save_entries(path, entries, busy_cores)


def save_entries(path: Path, found: Sequence[dict[str, Any]], busy_cores: float) -> None:
    """Put entries in a file by their `figure`, with where and when they were measured; others stay."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    where = {"time": stamp, "machine": machine(), "busy_cores_before": round(busy_cores, 2)}
    entries: dict[str, dict[str, Any]] = {}
    if path.exists():
        entries = {entry["figure"]: entry for entry in json.loads(path.read_text())}
    entries |= {entry["figure"]: entry | where for entry in found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n")
