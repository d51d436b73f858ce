"""LoRA's steps on a GPU beside the usual loop: transformers' model with PEFT, rows padded side by side, torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetuned_service.bases.device import resolve_device
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.cuda import compute_repeatably
from finetuned_service.training.gradients import Gradients
from finetuned_service.training.model import load_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks.figures import Figure, compared, take_turns
from benchmarks.gpu.serving import seconds

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
    steps: dict[str, Callable[[Sequence[EncodedRow]], None]] = {}
    peaks: dict[str, float] = {}
    for name, make in (("ours", our_step), ("peft", peft_step)):
        before = torch.cuda.memory_allocated()
        steps[name], base_bytes = make(base, device)
        torch.cuda.reset_peak_memory_stats()
        for batch in batches:
            steps[name](batch)
        peaks[name] = (torch.cuda.max_memory_allocated() - before - base_bytes) / 1e6

    def speed(step: Callable[[Sequence[EncodedRow]], None]) -> float:
        def epoch() -> None:
            for batch in batches:
                step(batch)

        return tokens / seconds(epoch)

    found = take_turns(runs, {name: partial(speed, step) for name, step in steps.items()})
    return [
        compared(f"gpu_{shape}_sft_tokens", "tokens/s", found["ours"], "peft", found["peft"]),
        compared(f"gpu_{shape}_sft_memory", "MB", [peaks["ours"]], "peft", [peaks["peft"]]),
    ]


@contextmanager
def as_in_a_job() -> Generator[None]:
    """Kernels that add in a fixed order; whatever order is fastest afterwards."""
    compute_repeatably()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)


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
    gradients = Gradients(print)

    def step(rows: Sequence[EncodedRow]) -> None:
        scale = 1.0 / sum(row.supervised_tokens for row in rows)
        with as_in_a_job():
            gradients.add(model.loss_of(rows, scale))
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
