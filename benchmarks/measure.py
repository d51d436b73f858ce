"""Measures groups of figures one after the other: each is saved as it is found, and one that fails stops no other."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.machine import busy_cores
from benchmarks.report import print_table, save

B = TypeVar("B")
F = TypeVar("F")

QUIET_CORES = 0.1


def measure(
    title: str,
    groups: Mapping[str, Callable[[B], Iterator[F]]],
    wanted: Iterable[str],
    bench: B,
    missing: list[str],
    output: Path,
    *,
    save: Callable[[Path, Sequence[F], float], None] = save,
    show: Callable[[str, Sequence[F], Sequence[str]], None] = print_table,
) -> int:
    """Print one table and write `output`; 1 if something could not be measured, which `missing` then names.

    `save` and `show` are for results of another kind than `figures.Figure`.
    """
    figures: list[F] = []
    for name in wanted:
        busy = busy_cores()
        quiet = (
            "" if busy <= QUIET_CORES else f"; {busy:.2f} cores are busy with something else: do not publish"
        )
        print(f"measuring: {name}{quiet}", flush=True)
        try:
            for figure in groups[name](bench):
                figures.append(figure)
                save(output, [figure], busy)
        except Exception as error:  # noqa: BLE001 - the other groups can be measured all the same
            traceback.print_exc()
            missing.append(f"{name}: {error}")
    show(title, figures, missing)
    print(f"written: {output}")
    return 1 if missing else 0


def options(
    parser: argparse.ArgumentParser, groups: Sequence[str], *, runs: int, results: Path, quick_results: Path
) -> argparse.Namespace:
    """Parse what every benchmark can be told, beside what `parser` has already, and fill its gaps."""
    parser.add_argument(
        "--only", action="append", choices=groups, metavar="GROUP", help=f"of {', '.join(groups)}"
    )
    parser.add_argument("--runs", type=int, help=f"measurements of each, after a warm-up; default {runs}")
    parser.add_argument("--quick", action="store_true", help="one run, smaller; proves that it works")
    parser.add_argument("--output", type=Path, help="where results go; those measured before stay in it")
    found = parser.parse_args()
    found.only = found.only or list(groups)
    found.runs = found.runs or (1 if found.quick else runs)
    found.output = found.output or (quick_results if found.quick else results)
    return found
