"""A soak as a table for people and as JSON for everyone else."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.report import PLAIN_COLUMNS
from benchmarks.soak.growth import MIB, Growth
from benchmarks.soak.run import Outcome

SHOWN_COMPLAINTS = 20


def print_tables(outcome: Outcome) -> None:
    """What grew and what did not, what was done, and every complaint (the first of them, if they are many)."""
    findings = outcome.findings
    title = f"{len(outcome.rests)} rounds in {outcome.seconds / 60:.0f} min; at rest after each"
    table = Table(
        "process", "quantity", "after warm-up", "at the end", "an hour", "grew", "allowed", "", title=title
    )
    for item in outcome.growths:
        verdict = "[green]flat[/]" if item.flat else "[red]grew[/]"
        table.add_row(item.process, item.quantity, *_shown(item), verdict)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_COLUMNS)
    console.print(table)
    console.print(
        f"{findings.calls.total()} actions; {outcome.compared} replies compared with the first of their kind "
        f"({outcome.pairs} kinds, {outcome.replies_per_question:.1f} different replies to a question), "
        f"{len(outcome.differences)} differed; {findings.refusals.total()} refused as they should be, "
        f"{len(findings.failures)} failed",
        highlight=False,
    )
    console.print(
        ", ".join(f"{name} {count}" for name, count in findings.calls.most_common()), highlight=False
    )
    if findings.frozen_seconds:
        console.print(f"the machine stood still for {findings.frozen_seconds:.0f} s of it", highlight=False)
    for line in outcome.complaints[:SHOWN_COMPLAINTS]:
        console.print(f"[red]complaint[/] {line}", highlight=False)
    if len(outcome.complaints) > SHOWN_COMPLAINTS:
        console.print(f"and {len(outcome.complaints) - SHOWN_COMPLAINTS} more")


def _shown(item: Growth) -> list[str]:
    unit, suffix = (MIB, " MiB") if item.quantity.endswith("_bytes") else (1, "")
    values = (item.first, item.last, item.slope_per_hour, item.grown, item.allowed)
    return [f"{value / unit:,.2f}{suffix}" for value in values]


def save(path: Path, outcome: Outcome) -> None:
    """Everything, every round included."""
    findings = outcome.findings
    whole = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "base": outcome.plan.base_source or "packaged",
        "seed": outcome.plan.seed,
        "minutes": round(outcome.seconds / 60, 1),
        "frozen_seconds": round(findings.frozen_seconds, 1),
        "rounds": len(outcome.rests),
        "actions": dict(findings.calls.most_common()),
        "refused_as_expected": dict(findings.refusals.most_common()),
        "replies_compared": outcome.compared,
        "kinds_of_replies": outcome.pairs,
        "different_replies_per_question": round(outcome.replies_per_question, 2),
        "complaints": outcome.complaints,
        "growth": [
            {name: round(v, 2) if isinstance(v, float) else v for name, v in asdict(item).items()}
            | {"verdict": "flat" if item.flat else "grew"}
            for item in outcome.growths
        ],
        "at_rest": outcome.rests,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
