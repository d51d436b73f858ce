"""`make soak`: half an hour of everything against a real server; 1 if something grew, differed or failed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.soak.report import print_tables, save
from benchmarks.soak.run import Plan, soak

RESULTS = Path("benchmarks/results/soak.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    parser.add_argument("--minutes", type=float, default=minutes, help="SOAK_MINUTES, or 30")
    base = os.environ.get("SOAK_BASE", "")
    parser.add_argument("--base", default=base, help="SOAK_BASE: source of a base; default the packaged one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path("build/soak"), help="emptied first")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    outcome = soak(Plan(options.directory, options.base, options.minutes, seed=options.seed))
    print_tables(outcome)
    save(options.output, outcome)
    print(f"written: {options.output}")
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
