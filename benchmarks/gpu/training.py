"""LoRA's steps on a GPU beside the usual loop: transformers' model with PEFT, rows padded side by side, torch's AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.bases.device import resolve_device
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.model import load_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks.figures import Figure, compared

ROWS, STEPS, RANK = 16, 20, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def uneven_rows(count: int) -> list[EncodedRow]:
    """Of 64 to 512 tokens, the last third of each supervised."""
    generator = torch.Generator().manual_seed(2)
    rows: list[EncodedRow] = []
    for _ in range(count):
        length = int(torch.randint(64, 513, (), generator=generator))
        ids = torch.randint(3, 40_000, (length,), generator=generator).tolist()
        rows.append(EncodedRow(ids, [place > length * 2 // 3 for place in range(length)]))
    return rows


def training_figures(base: Path, runs: int, shape: str, device: str) -> list[Figure]:
    """Tokens per second of an optimizer step on rows of uneven length, and the most memory above the base."""
    batches = [uneven_rows(ROWS * STEPS)[i * ROWS : (i + 1) * ROWS] for i in range(STEPS)]
    tokens = sum(len(row.token_ids) for batch in batches for row in batch)
    speeds: dict[str, list[float]] = {"ours": [], "peft": []}
    peaks: dict[str, list[float]] = {"ours": [], "peft": []}
    for name, make in (("ours", our_step), ("peft", peft_step)):
        before = torch.cuda.memory_allocated()
        step, base_bytes = make(base, device)
        step(batches[0])
        for _ in range(runs):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            torch.cuda.synchronize()
            speeds[name].append(tokens / (time.perf_counter() - began))
            peaks[name].append((torch.cuda.max_memory_allocated() - before - base_bytes) / 1e6)
        del step
        torch.cuda.empty_cache()
    return [
        compared(f"gpu_{shape}_sft_tokens", "tokens/s", speeds["ours"], "peft", speeds["peft"]),
        compared(f"gpu_{shape}_sft_memory", "MB", peaks["ours"], "peft", peaks["peft"]),
    ]


def our_step(base: Path, device: str) -> tuple[Callable[[Sequence[EncodedRow]], None], int]:
    wanted = TrainSpec.model_validate(
        {"dataset": "", "adapter": "", "lora": {"rank": RANK, "target_modules": TARGETS}}
    )
    model = load_model(
        base, resolve_method(wanted, BaseFacts.of_directory(base)), None, resolve_device(device)
    )
    parameters = [parameter for _, parameter in model.named_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    model.train(mode=True)

    def step(rows: Sequence[EncodedRow]) -> None:
        scale = 1.0 / sum(row.supervised_tokens for row in rows)
        model.loss_of(rows, scale).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, _frozen_bytes(model.decoder)


def peft_step(base: Path, device: str) -> tuple[Callable[[Sequence[EncodedRow]], None], int]:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
    model: Any = get_peft_model(
        plain, LoraConfig(r=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    model.train()

    def step(rows: Sequence[EncodedRow]) -> None:
        longest = max(len(row.token_ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            length = len(row.token_ids)
            ids[i, :length], mask[i, :length] = torch.tensor(row.token_ids), 1
            flags = torch.tensor(row.supervised)
            labels[i, :length][flags] = ids[i, :length][flags]
        ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, _frozen_bytes(model)


def _frozen_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
