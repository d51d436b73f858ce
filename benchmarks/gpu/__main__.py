"""`python -m benchmarks.gpu`: decoding, prefill and training on a GPU beside transformers and PEFT. See ../README.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from finetuned_service.bases.device import device_name, resolve_device

from benchmarks.adapters import write_adapter
from benchmarks.figures import Figure
from benchmarks.gpu.bases import SHAPES, random_base
from benchmarks.gpu.serving import RANK, serving_figures, told
from benchmarks.gpu.training import training_figures
from benchmarks.machine import busy_cores
from benchmarks.report import print_table, save


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--directory", type=Path, default=Path("build/bench/gpu"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results/gpu.json")
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as job processes have it
    every: list[Figure] = []
    busy = busy_cores()
    for shape in options.shape:
        base = random_base(options.directory / shape, shape, options.device)
        adapters = [
            write_adapter(options.directory / f"{shape}-r{RANK}-{i}", base, RANK, i) for i in range(32)
        ]
        figures = serving_figures(base, adapters, options.runs, shape, options.device)
        figures += [told(figure) for figure in training_figures(base, options.runs, shape, options.device)]
        torch.cuda.empty_cache()
        every += figures
        save(options.output, figures, busy)
    print_table(f"on {device_name(resolve_device(options.device))}", every, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())
