"""`python -m benchmarks.training`: training beside TRL, one table, one file of results. See ../README.md."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.bench import DATA
from benchmarks.measure import measure, options
from benchmarks.ours import ours
from benchmarks.peers.start import installed
from benchmarks.training.groups import GROUPS, WITHOUT_TRL, TrainingBench
from benchmarks.training.rows import RowFactory

ROWS = Path("build/bench/rows")
RESULTS = Path(__file__).parents[1] / "results/training.json"
QUICK_RESULTS = Path("build/bench/quick-training.json")
TITLE = "SmolLM2-135M bf16, LoRA rank 16 on all seven projections, steps of 8 rows"


def main() -> int:
    """Measure what was asked for; 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--base", type=Path, help="a base's directory; else the packaged one")
    chosen = options(parser, list(GROUPS), runs=3, results=RESULTS, quick_results=QUICK_RESULTS)
    # So that learners, which are stopped when it is not their turn, are killed with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not WITHOUT_TRL.issuperset(chosen.only) and not installed("trl"):
        print("trl is not built: benchmarks/peers/build trl", file=sys.stderr)
        return 1
    base: Path | None = chosen.base
    if base is None:
        with ours(DATA) as server:
            base = DATA / server.calls.server_info().base.name
    bench = TrainingBench(base, RowFactory(base, ROWS), chosen.runs, chosen.quick)
    return measure(TITLE, GROUPS, chosen.only, bench, [], chosen.output)


if __name__ == "__main__":
    sys.exit(main())
