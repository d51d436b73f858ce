"""What every benchmark shares: figures, their table, their JSON, and the machine they were taken on.

Machines drift, so a figure is the median of several runs, runs of peers alternate with ours, and the
ratio within one run is what counts.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure; `peer` and `ratio` (ours / peer's) where somebody else did the same."""

    figure: str
    value: float
    unit: str
    peer: float | None = None
    ratio: float | None = None
    runs: int = 1


def compared(figure: str, unit: str, ours: Sequence[float], peers: Sequence[float]) -> Figure:
    """Medians of both, and the median of the ratios run by run."""
    ratio = statistics.median(our / peer for our, peer in zip(ours, peers, strict=True))
    return Figure(figure, statistics.median(ours), unit, statistics.median(peers), ratio, len(ours))


def alternated(runs: int, *measure: Callable[[], float]) -> list[list[float]]:
    """Run each measurement once as a warm-up, then all in turn, `runs` times."""
    for one in measure:
        one()
    found: list[list[float]] = [[] for _ in measure]
    for _ in range(runs):
        for values, one in zip(found, measure, strict=True):
            values.append(one())
    return found


def publish(name: str, title: str, peer: str, figures: Sequence[Figure]) -> None:
    """Print the table and write `results/{name}.json`."""
    table = Table("figure", "ours", "unit", peer or "peer", "ratio", "runs", title=title)
    for f in figures:
        other = "" if f.peer is None else f"{f.peer:,.1f}"
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}x"
        table.add_row(f.figure, f"{f.value:,.1f}", f.unit, other, ratio, str(f.runs))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "peer": peer,
        "figures": [asdict(figure) for figure in figures],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "processor": model,
        "instructions": [flag for flag in wanted if flag in flags.split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
