"""Training over a base in float16: gradients do not vanish in it, however many tokens a step has."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.jobs.events import Environment, Progress
from finetuned_service.jobs.specs import EvaluationOptions, LoraSettings, Optimization, TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.checkpoint import CheckpointStore, RunState
from finetuned_service.training.loop import Trainer
from finetuned_service.training.model import AdaptedModel, load_model
from finetuned_service.training.schedule import Plan
from tiny_models import ALL_PROJECTIONS, save_tiny_base
from training_tasks import Reports

WIDE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LORA = LoraSettings(rank=4, alpha=8.0, target_modules=ALL_PROJECTIONS)
ROWS = 24
OPTIMIZATION = Optimization(
    max_steps=1, batch_rows=ROWS, learning_rate=1e-9, max_gradient_norm=0.0, checkpoint_interval_steps=1
)


def rows() -> list[EncodedRow]:
    """One token after another, each told by the one before."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(ROWS):
        token_ids = [int(torch.randint(3, 40, (), generator=generator))]
        while len(token_ids) < 96:
            token_ids.append(3 + (token_ids[-1] * 7 + 11) % 37)
        made.append(EncodedRow(token_ids, [place > 0 for place in range(96)]))
    return made


def adapted(base: Path) -> AdaptedModel:
    """The same A and B whatever the dtype, and no B of zeros: A has a gradient."""
    model = load_model(base, TrainSpec(dataset="", adapter="", lora=LORA))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.002 if "lora_B" in name else 0.1
            parameter.copy_((spread * torch.randn(parameter.shape, generator=generator)).half())
    return model


def gradients(base: Path, directory: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Those that a step hands to the optimizer, and the loss that it tells."""
    model, reports, found = adapted(base), Reports(), dict[str, torch.Tensor]()
    trainer = Trainer(
        model,
        OPTIMIZATION,
        Plan.of(OPTIMIZATION, EvaluationOptions(evaluations=0)),
        patience=0,
        train_rows=rows(),
        heldout_rows=(),
        checkpoints=CheckpointStore(directory),
        report=reports,
        stop=threading.Event(),
        state=RunState(task_digest="", environment=Environment(base_digest="", service_version="")),
    )

    def keep(*_: object) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found[name] = parameter.grad.double().clone()

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.run()
    (told,) = [progress.loss for progress in reports.of(Progress)]
    assert told is not None
    return found, told


def learnt(directory: Path) -> Path:
    """A base that tells the rows well: gradients are small."""
    from transformers import AutoModelForCausalLM

    save_tiny_base(directory, **WIDE, initializer_range=0.02)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    ids = torch.tensor([row.token_ids for row in rows()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(70):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    return directory


def test_gradients_of_a_large_step_are_those_of_float64(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    exact = learnt(tmp_path / "exact")
    half, doubled = tmp_path / "half", tmp_path / "doubled"
    rounded = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float16)
    rounded.save_pretrained(half)
    rounded.double().save_pretrained(doubled)
    found, loss = gradients(half, tmp_path / "run")
    expected, expected_loss = gradients(doubled, tmp_path / "reference")
    assert expected_loss < 0.1
    assert loss == pytest.approx(expected_loss, rel=0.05)
    worst = max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    assert worst < 0.1
