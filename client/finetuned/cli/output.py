"""What commands print: tables for people on a terminal, JSON for programs.

Results go to standard output, everything else (progress, notices, errors) to standard error, so that
a pipe carries results only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuned._names import short
from finetuned.errors import FinetunedError
from finetuned.values.common import Metric

Cell = str | int | float | bool | datetime | None


def out() -> Console:
    """Made when needed: standard output may have been replaced since the import."""
    return Console(highlight=False)


def err() -> Console:
    return Console(stderr=True, highlight=False)


def to_json(value: object) -> Any:
    """Values of `finetuned` as JSON has them: dataclasses are objects, times ISO 8601, enums their names."""
    if is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in cast("Sequence[object]", value)]
    return value


def json_text(value: object) -> str:
    """One line of JSON lines, without its end."""
    return json.dumps(to_json(value), ensure_ascii=False)


def print_json(value: object, *, line: bool = False) -> None:
    """One JSON document, or one line of many."""
    print(json_text(value) if line else json.dumps(to_json(value), ensure_ascii=False, indent=2), flush=line)


def error_json(error: FinetunedError) -> dict[str, object]:
    return {
        "error": {
            "reason": error.reason,
            "code": error.code.name,
            "message": error.message,
            "metadata": dict(error.metadata),
            "violations": [to_json(item) for item in error.violations],
            "retry_after_seconds": error.retry_after_seconds,
        }
    }


def cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str = ""
) -> None:
    """A table, or what to do about there being nothing to show."""
    table = Table(*columns, title=escape(title), title_justify="left")
    for row in rows:
        # What users wrote is no markup of rich's.
        table.add_row(*(escape(cell(value)) for value in row))
    if table.row_count or not empty:
        out().print(table)
    else:
        err().print(empty)


def print_facts(title: str, facts: Mapping[str, Cell]) -> None:
    """Names and values, one a line; what is empty is left out."""
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a digest cut short is of no use
    for name, value in facts.items():
        if value not in {None, ""}:
            table.add_row(f"[bold]{escape(name)}[/bold]", escape(cell(value)))
    out().print(table)


def size(count: int) -> str:
    """Bytes for people: 269000000 is "256.5 MiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds for people: 83.0 is "1:23"."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def metrics(found: Sequence[Metric]) -> str:
    return ", ".join(f"{metric.name} {metric.value:.4g}" for metric in found)


def names(full: Iterable[str]) -> str:
    return ", ".join(short(name) for name in full)
