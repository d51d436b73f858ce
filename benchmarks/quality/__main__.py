"""`python -m benchmarks.quality`: what training makes beside the references, one table, one file of results. See
../README.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks.measure import measure, options
from benchmarks.quality import report
from benchmarks.quality.groups import GROUPS, QualityBench
from benchmarks.quality.learners import learners
from benchmarks.quality.studies import METHODS

RESULTS = Path(__file__).parents[1] / "results/quality.json"
QUICK_RESULTS = Path("build/bench/quality/quick.json")
TITLE = "Score, time and memory of training: ours beside the reference"


def main() -> int:
    """Measure what was asked for; 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--resume", action="store_true", help="take runs that ended before from their files")
    parser.add_argument(
        "--method", action="append", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing; print the results as Markdown")
    chosen = options(parser, list(GROUPS), runs=3, results=RESULTS, quick_results=QUICK_RESULTS)
    if chosen.table:
        print(report.markdown(json.loads(chosen.output.read_text())), end="")
        return 0
    # So that learners, which are stopped when it is not their turn, are killed with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with learners(resume=chosen.resume) as both:
        bench = QualityBench(both, chosen.runs, chosen.quick, frozenset(chosen.method or METHODS))
        return measure(
            TITLE,
            GROUPS,
            chosen.only,
            bench,
            [],
            chosen.output,
            save=report.save,
            show=report.print_table,
        )


if __name__ == "__main__":
    sys.exit(main())
