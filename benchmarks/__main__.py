"""`python -m benchmarks`: ours beside its peers, one table, one file of results. See README.md here."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.bench import DATA, Bench
from benchmarks.groups import GROUPS
from benchmarks.measure import measure, options
from benchmarks.ours import ours
from benchmarks.peers import start
from benchmarks.prompts import Prompts

RESULTS = Path(__file__).parent / "results/serving.json"
QUICK_RESULTS = Path("build/bench/quick.json")
TITLE = "SmolLM2-135M bf16, LoRA rank 16 on all seven projections, 64 new tokens"


def main() -> int:
    """Measure what was asked for; 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers", nargs="*", choices=start.NAMES, default=list(start.NAMES))
    chosen = options(parser, list(GROUPS), runs=5, results=RESULTS, quick_results=QUICK_RESULTS)
    # So that the peers, which are stopped when it is not their turn, are killed with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ours(DATA) as server:
        base = DATA / server.calls.server_info().base.name
    expected = frozenset(chosen.peers)
    bench = Bench(
        base=base,
        prompts=Prompts(base),
        runs=chosen.runs,
        quick=chosen.quick,
        peers=frozenset(filter(start.installed, expected)),
        expected=expected,
    )
    bench.missing += [
        f"{name}: not built; see build/peers/{name}.log" for name in sorted(expected - bench.peers)
    ]
    return measure(TITLE, GROUPS, chosen.only, bench, bench.missing, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
