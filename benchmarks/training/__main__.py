"""`python -m benchmarks.training`: training beside TRL, one table, one file of results. See ../README.md."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from benchmarks.bench import DATA
from benchmarks.figures import Figure
from benchmarks.machine import busy_cores
from benchmarks.ours import ours
from benchmarks.peers.start import installed
from benchmarks.report import print_table, save
from benchmarks.training.groups import GROUPS, TrainingBench
from benchmarks.training.rows import RowFactory

ROWS = Path("build/bench/rows")
RESULTS = Path(__file__).parents[1] / "results/training.json"
QUICK_RESULTS = Path("build/bench/quick-training.json")
QUIET_CORES = 0.1
TITLE = "SmolLM2-135M bf16, LoRA rank 16 on all seven projections, steps of 8 rows"


def main() -> int:
    """Measure what was asked for; 1 if something could not be measured."""
    options = _options()
    # So that learners, which are stopped when it is not their turn, are killed with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not installed("trl"):
        print("trl is not built: benchmarks/peers/build trl", file=sys.stderr)
        return 1
    base: Path | None = options.base
    if base is None:
        with ours(DATA) as server:
            base = DATA / server.calls.server_info().base.name
    bench = TrainingBench(base, RowFactory(base, ROWS), options.runs, options.quick)
    figures: list[Figure] = []
    missing: list[str] = []
    for name in options.only:
        busy = busy_cores()
        quiet = (
            "" if busy <= QUIET_CORES else f"; {busy:.2f} cores are busy with something else: do not publish"
        )
        print(f"measuring: {name}{quiet}", flush=True)
        try:
            for figure in GROUPS[name](bench):
                figures.append(figure)
                save(options.output, [figure], busy)
        except Exception as error:  # noqa: BLE001 - the other groups can be measured all the same
            traceback.print_exc()
            missing.append(f"{name}: {error}")
    print_table(TITLE, figures, missing)
    print(f"written: {options.output}")
    return 1 if missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}"
    )
    parser.add_argument("--base", type=Path, help="a base's directory; else the packaged one")
    parser.add_argument("--runs", type=int, help="measurements of each; default 3")
    parser.add_argument("--quick", action="store_true", help="one run, smaller; proves that it works")
    parser.add_argument("--output", type=Path, help="where results go; those measured before stay in it")
    options = parser.parse_args()
    options.only = options.only or list(GROUPS)
    options.runs = options.runs or (1 if options.quick else 3)
    options.output = options.output or (QUICK_RESULTS if options.quick else RESULTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
