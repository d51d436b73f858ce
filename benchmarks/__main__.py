"""`python -m benchmarks`: ours beside its peers, one table, one file of results. See README.md here."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from benchmarks.bench import DATA, Bench
from benchmarks.figures import Figure
from benchmarks.groups import GROUPS
from benchmarks.machine import busy_cores
from benchmarks.ours import ours
from benchmarks.peers import start
from benchmarks.prompts import Prompts
from benchmarks.report import print_table, save

RESULTS = Path(__file__).parent / "results/serving.json"
QUICK_RESULTS = Path("build/bench/quick.json")
QUIET_CORES = 0.1
TITLE = "SmolLM2-135M bf16, LoRA rank 16 on all seven projections, 64 new tokens"


def main() -> int:
    """Measure what was asked for; 1 if something could not be measured."""
    options = _options()
    # So that the peers, which are stopped when it is not their turn, are killed with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ours(DATA) as server:
        base = DATA / server.calls.server_info().base.name
    expected = frozenset(options.peers)
    bench = Bench(
        base=base,
        prompts=Prompts(base),
        runs=options.runs,
        quick=options.quick,
        peers=frozenset(filter(start.installed, expected)),
        expected=expected,
    )
    bench.missing += [
        f"{name}: not built; see build/peers/{name}.log" for name in sorted(expected - bench.peers)
    ]
    figures: list[Figure] = []
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
            bench.missing.append(f"{name}: {error}")
    print_table(TITLE, figures, bench.missing)
    print(f"written: {options.output}")
    return 1 if bench.missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}"
    )
    parser.add_argument("--peers", nargs="*", choices=start.NAMES, default=list(start.NAMES))
    parser.add_argument("--runs", type=int, help="measurements of each, after a warm-up; default 5")
    parser.add_argument("--quick", action="store_true", help="one run, smaller; proves that it works")
    parser.add_argument("--output", type=Path, help="where results go; those measured before stay in it")
    options = parser.parse_args()
    options.only = options.only or list(GROUPS)
    options.runs = options.runs or (1 if options.quick else 5)
    options.output = options.output or (QUICK_RESULTS if options.quick else RESULTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
