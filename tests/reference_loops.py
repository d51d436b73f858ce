"""Plain PyTorch beside our training: the rows, the loss by its definition, and the curve of a few AdamW steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.adapter import adapter_handle, write_adapter
from tiny_models import VOCABULARY, random_prompt

STEPS = 4
RATE = 5e-2


def rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for length in (9, 14, 6):
        token_ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(EncodedRow(token_ids, [place > 2 for place in range(length)]))
    return made


def reference_loss(model: Any) -> torch.Tensor:
    """By the definition: every supervised token's -log p, each row alone, through all logits."""
    losses = []
    for row in rows():
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0]
        losses += [-logits[p - 1].log_softmax(-1)[row.token_ids[p]] for p in range(3, len(row.token_ids))]
    return torch.stack(losses).mean()


def reference_curve(model: Any, parameters: list[torch.nn.Parameter]) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    curve = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = reference_loss(model)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def our_curve(model: Any) -> list[float]:
    optimizer = torch.optim.AdamW([p for _, p in model.named_parameters()], lr=RATE, weight_decay=0.0)
    scale = 1.0 / sum(row.supervised_tokens for row in rows())
    curve = []
    model.train(mode=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss_of(rows(), scale)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def replies_alone_and_together(
    base: Path, root: Path, models: Sequence[Any]
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens that the plain base and an adapter of each model, moved a little, reply with: one after another, and in
    one batch.
    """
    requests = [Submit(0, random_prompt(40, 9), None, Sampling(6, ignore_eos=True))]
    for number, model in enumerate(models, 1):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for _, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.add_(noise.to(parameter.device))
        directory = root / str(number)
        directory.mkdir()
        write_adapter(directory, model.method, "bases/tiny", torch.float32)
        handle = adapter_handle(directory, base)
        requests.append(
            Submit(number, random_prompt(40 + number % 3, 9), handle, Sampling(6, ignore_eos=True))
        )
    config = EngineConfig("", kv_capacity_tokens=1024, max_running_sequences=16, max_prefill_tokens=32)
    with OfflineEngine(EngineModel.load(base), config) as engine:
        alone = [engine.generate([request])[0].token_ids for request in requests]
        return alone, [completion.token_ids for completion in engine.generate(requests)]
