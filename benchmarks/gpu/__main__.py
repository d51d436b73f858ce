"""`python -m benchmarks.gpu`: decoding, prefill and training on a GPU beside transformers and PEFT. See ../README.md."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.device import device_name, resolve_device
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.adapters import write_adapter
from benchmarks.figures import Figure, compared
from benchmarks.gpu.bases import SHAPES, random_base
from benchmarks.gpu.training import training_figures
from benchmarks.report import print_table, save

PROMPT_TOKENS, NEW_TOKENS, RANK, LONG_TOKENS = 64, 32, 16, 1000
CASES = ((1, 0), (8, 0), (32, 0), (8, 8), (32, 8), (32, 32))
"""Sequences, and how many adapters they have among them; 0 is the plain base."""


class Ours:
    """Our engine, without gRPC."""

    def __init__(self, base: Path, device: str) -> None:
        self.model = EngineModel.load(base, device=resolve_device(device))
        config = EngineConfig(
            str(base),
            max_running_sequences=64,
            kv_capacity_tokens=65_536,
            device_budget_bytes=4 << 30,
            host_budget_bytes=4 << 30,
        )
        self.engine = OfflineEngine(self.model, config)
        self._ids = itertools.count()

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[AdapterHandle | None], new_tokens: int
    ) -> list[list[int]]:
        requests = [
            Submit(next(self._ids), tuple(prompt), adapter, Sampling(new_tokens, ignore_eos=True))
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        completions = self.engine.generate(requests)
        if any(len(completion.token_ids) != new_tokens for completion in completions):
            raise RuntimeError(f"a reply is not {new_tokens} tokens long: {completions[0].error}")
        return [completion.token_ids for completion in completions]


class Peft:
    """transformers for the base, PEFT's `adapter_names` for mixed adapters; both loaded once."""

    def __init__(self, base: Path, adapters: Sequence[Path], device: str) -> None:
        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device).eval()

        self._base = load()
        self._adapted: Any = PeftModel.from_pretrained(
            load(), str(adapters[0]), adapter_name=adapters[0].name
        )
        for adapter in adapters[1:]:
            self._adapted.load_adapter(str(adapter), adapter_name=adapter.name)
        self._adapted.eval()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], names: Sequence[str], new_tokens: int) -> None:
        ids = torch.tensor(prompts, device=self._base.device)
        options: dict[str, Any] = {"adapter_names": list(names)} if names else {}
        model = self._adapted if names else self._base
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=2,
            **options,
        )
        if out.shape[1] != ids.shape[1] + new_tokens:
            raise RuntimeError("PEFT made fewer tokens")


def seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def serving_figures(base: Path, adapters: Sequence[Path], runs: int, shape: str, device: str) -> list[Figure]:
    """Tokens per second of both, taking turns."""
    geometry = BaseGeometry.of_files(base)
    handles = [AdapterHandle(check_adapter(path, geometry, 64).digest, str(path)) for path in adapters]
    ours, peft = Ours(base, device), Peft(base, adapters, device)
    generator = torch.Generator().manual_seed(1)

    def prompts(count: int, tokens: int) -> list[list[int]]:
        return torch.randint(3, 40_000, (count, tokens), generator=generator).tolist()

    # The first round warms both up: kernels are chosen, shapes captured.
    found: dict[tuple[int, int], tuple[list[float], list[float]]] = {case: ([], []) for case in CASES}
    prefill: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for sequences, of in CASES:
            chosen = [i % of for i in range(sequences)] if of else []
            mine = [handles[i] for i in chosen] or [None] * sequences
            rows, names = prompts(sequences, PROMPT_TOKENS), [adapters[i].name for i in chosen]
            taken = seconds(lambda rows=rows, mine=mine: ours.generate(rows, mine, NEW_TOKENS))
            if not run:
                peft.generate(rows[:1], names[:1], NEW_TOKENS)
                continue
            theirs = seconds(lambda rows=rows, names=names: peft.generate(rows, names, NEW_TOKENS))
            found[sequences, of][0].append(sequences * NEW_TOKENS / taken)
            found[sequences, of][1].append(sequences * NEW_TOKENS / theirs)
        rows = prompts(8, LONG_TOKENS)
        taken = seconds(lambda rows=rows: ours.generate(rows, [None] * 8, 1))
        theirs = seconds(lambda rows=rows: peft.generate(rows, [], 1))
        if run:
            prefill[0].append(8 * LONG_TOKENS / taken)
            prefill[1].append(8 * LONG_TOKENS / theirs)
    figures = [
        compared(f"gpu_{shape}_{'mixed' if of else 'base'}_{sequences}" + (f"_on_{of}" if of else ""),
                 "tokens/s", *_ordered(found[sequences, of]))
        for sequences, of in CASES
    ]  # fmt: skip
    figures.append(compared(f"gpu_{shape}_prefill", "tokens/s", *_ordered(prefill)))
    for sequences, of in CASES[3:]:
        plain = found[sequences, 0][0]
        name = f"gpu_{shape}_mixed_{sequences}_on_{of}_vs_own_base"
        figures.append(compared(name, "tokens/s", found[sequences, of][0], "our base", plain))
    ours.engine.close()
    return figures


def _ordered(pair: tuple[list[float], list[float]]) -> tuple[list[float], str, list[float]]:
    return pair[0], "peft", pair[1]


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--directory", type=Path, default=Path("build/bench/gpu"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results/gpu.json")
    options = parser.parse_args()
    figures: list[Figure] = []
    for shape in options.shape:
        base = random_base(options.directory / shape, shape, options.device)
        adapters = [
            write_adapter(options.directory / f"{shape}-r{RANK}-{i}", base, RANK, i) for i in range(32)
        ]
        figures += serving_figures(base, adapters, options.runs, shape, options.device)
        figures += training_figures(base, options.runs, shape, options.device)
        torch.cuda.empty_cache()
    print_table(f"on {device_name(resolve_device(options.device))}", figures, [])
    save(options.output, figures, 0.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
