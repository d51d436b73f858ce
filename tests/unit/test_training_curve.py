"""The loss curve of a whole run lies on that of transformers, PEFT and AdamW, in float32, row by row."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from finetuned_service.jobs.events import Environment, Progress
from finetuned_service.jobs.specs import EvaluationOptions, LoraSettings, Optimization, TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.checkpoint import CheckpointStore, RunState
from finetuned_service.training.loop import Trainer
from finetuned_service.training.model import load_model
from finetuned_service.training.order import RowOrder
from finetuned_service.training.schedule import Plan
from peft import LoraConfig, get_peft_model
from tiny_models import ALL_PROJECTIONS, VOCABULARY, load_plain, peft_warnings_allowed, save_tiny_base
from torch.nn import functional
from training_tasks import Reports

STEPS, BATCH_ROWS = 12, 4
LORA = LoraSettings(rank=4, alpha=8.0, target_modules=ALL_PROJECTIONS)
SPEC = TrainSpec(dataset="", adapter="", lora=LORA)


def uneven_rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for length in (4, 31, 9, 2, 17, 60, 5, 12, 40, 3):
        start = int(torch.randint(3, 20, (), generator=generator))
        token_ids = [3 + (start + 5 * place) % (VOCABULARY - 3) for place in range(length)]
        made.append(
            EncodedRow(token_ids, [place > length // 3 or place == length - 1 for place in range(length)])
        )
    return made


def settings(micro_batch_rows: int) -> Optimization:
    return Optimization(
        max_steps=STEPS,
        batch_rows=BATCH_ROWS,
        micro_batch_rows=micro_batch_rows,
        learning_rate=2e-2,
        weight_decay=0.01,
        checkpoint_interval_steps=STEPS,
    )


def our_losses(base: Any, directory: Any, micro_batch_rows: int) -> list[float]:
    model = load_model(base, SPEC)
    optimization, reports = settings(micro_batch_rows), Reports()
    Trainer(
        model,
        optimization,
        Plan.of(optimization, EvaluationOptions(evaluations=0)),
        patience=0,
        train_rows=uneven_rows(),
        heldout_rows=(),
        checkpoints=CheckpointStore(directory),
        report=reports,
        stop=threading.Event(),
        state=RunState(task_digest="", environment=Environment(base_digest="", service_version="")),
    ).run()
    return [progress.loss for progress in reports.of(Progress)]


def their_losses(base: Any) -> list[float]:
    ours = load_model(base, SPEC)
    with peft_warnings_allowed():
        model = get_peft_model(
            load_plain(base),
            LoraConfig(
                r=LORA.rank, lora_alpha=8, target_modules=list(ALL_PROJECTIONS), task_type="CAUSAL_LM"
            ),
        )
    for name, parameter in ours.named_parameters():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        twin = getattr(model.base_model.model.get_submodule(module), kind)["default"]
        twin.weight.data.copy_(parameter.data)
    optimization = settings(BATCH_ROWS)
    plan = Plan.of(optimization, EvaluationOptions(evaluations=0))
    rows, order = uneven_rows(), RowOrder(10, BATCH_ROWS, optimization.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, weight_decay=optimization.weight_decay)
    losses = []
    for step in range(STEPS):
        batch = [rows[index] for index in order.rows_of_step(step)]
        supervised = sum(row.supervised_tokens for row in batch)
        total = 0.0
        for row in batch:
            labels = torch.tensor(
                [t if s else -100 for t, s in zip(row.token_ids, row.supervised, strict=True)]
            )
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0]
            loss = functional.cross_entropy(logits[:-1], labels[1:], reduction="sum") / supervised
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, optimization.max_gradient_norm)
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate(step)
        adam.step()
        adam.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize("micro_batch_rows", [BATCH_ROWS, 1])
def test_the_curve_lies_on_the_reference(tmp_path, micro_batch_rows):
    base = save_tiny_base(tmp_path / "base")
    found, expected = our_losses(base, tmp_path / "checkpoints", micro_batch_rows), their_losses(base)
    assert expected[-1] < 0.7 * expected[0]
    assert found == pytest.approx(expected, rel=1e-4)
