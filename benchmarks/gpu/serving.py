"""Decoding and prefill on a GPU beside transformers and PEFT on the same one."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.device import resolve_device
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.figures import Figure, compared, take_turns

PROMPT_TOKENS, NEW_TOKENS, RANK, LONG_TOKENS = 64, 32, 16, 1000
PEER_ADAPTERS, PEER_MIXED_TOKENS = 8, 8
"""With adapters PEFT computes one after another at each module, up to half a second for a step on eight: it gets few of
them, its replies are cut, and the time of their prompts is not counted at all."""
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


class Both:
    """Ours and theirs over one base, asked for the same."""

    def __init__(self, base: Path, adapters: Sequence[Path], device: str) -> None:
        geometry = BaseGeometry.of_files(base)
        self._names = [path.name for path in adapters]
        self._handles = [
            AdapterHandle(check_adapter(path, geometry, 64).digest, str(path)) for path in adapters
        ]
        self.ours, self._peft = Ours(base, device), Peft(base, adapters[:PEER_ADAPTERS], device)
        self._generator = torch.Generator().manual_seed(1)

    def our_speed(self, sequences: int, of: int) -> float:
        """Tokens per second of sequences on `of` adapters (0: the plain base), their prompts' time included."""
        chosen = [self._handles[i % of] for i in range(sequences)] if of else [None] * sequences
        rows = self._prompts(sequences, PROMPT_TOKENS)
        return sequences * NEW_TOKENS / seconds(lambda: self.ours.generate(rows, chosen, NEW_TOKENS))

    def peer_speed(self, sequences: int, of: int) -> float:
        """As `our_speed`; with adapters of few tokens, and without their prompts' time."""
        names = [self._names[i % of] for i in range(sequences)] if of else []
        rows = self._prompts(sequences, PROMPT_TOKENS)
        if not of:
            return sequences * NEW_TOKENS / seconds(lambda: self._peft.generate(rows, [], NEW_TOKENS))
        prompt = seconds(lambda: self._peft.generate(rows, names, 1))
        whole = seconds(lambda: self._peft.generate(rows, names, 1 + PEER_MIXED_TOKENS))
        return sequences * PEER_MIXED_TOKENS / (whole - prompt)

    def our_prefill(self) -> float:
        """Prompt tokens per second."""
        rows = self._prompts(8, LONG_TOKENS)
        return 8 * LONG_TOKENS / seconds(lambda: self.ours.generate(rows, [None] * 8, 1))

    def peer_prefill(self) -> float:
        rows = self._prompts(8, LONG_TOKENS)
        return 8 * LONG_TOKENS / seconds(lambda: self._peft.generate(rows, [], 1))

    def _prompts(self, count: int, tokens: int) -> list[list[int]]:
        return torch.randint(3, 40_000, (count, tokens), generator=self._generator).tolist()


def serving_figures(base: Path, adapters: Sequence[Path], runs: int, shape: str, device: str) -> list[Figure]:
    """Tokens per second of both, taking turns."""
    both = Both(base, adapters, device)
    for case in CASES:  # kernels are chosen, and shapes captured that have come
        both.our_speed(*case)
    both.ours.engine.warm()
    figures: list[Figure] = []
    plain: dict[int, list[float]] = {}
    for sequences, of in CASES:
        measures = {"ours": partial(both.our_speed, sequences, of)}
        if of <= PEER_ADAPTERS:
            measures["peft"] = partial(both.peer_speed, sequences, of)
        found = take_turns(runs, measures)
        name = f"gpu_{shape}_" + (f"mixed_{sequences}_on_{of}" if of else f"base_{sequences}")
        note = f"PEFT: {PEER_MIXED_TOKENS} tokens, without their prompts" if of else ""
        if "peft" in found:
            figures.append(told(compared(name, "tokens/s", found["ours"], "peft", found["peft"], note=note)))
        if of:
            name += "_vs_own_base"
            figures.append(told(compared(name, "tokens/s", found["ours"], "our base", plain[sequences])))
        else:
            plain[sequences] = found["ours"]
    found = take_turns(runs, {"ours": both.our_prefill, "peft": both.peer_prefill})
    figures.append(told(compared(f"gpu_{shape}_prefill", "tokens/s", found["ours"], "peft", found["peft"])))
    both.ours.engine.close()
    return figures


def told(figure: Figure) -> Figure:
    """What has been measured so far, for who waits."""
    beside = f" beside {figure.peer:,.0f}" if figure.peer is not None else ""
    print(f"{figure.figure}: {figure.value:,.0f} {figure.unit}{beside}", file=sys.stderr, flush=True)
    return figure
