"""A head with a rate of its own beside other parameters: the steps are those of AdamW with two groups."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.errors import TrainingDiverged
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainTask
from finetuned_service.training.order import RowOrder
from finetuned_service.training.run import run
from finetuned_service.training.schedule import Plan
from safetensors.torch import load_file
from tiny_encoders import make_encoder_base, word_pieces
from torch.nn import functional
from training_tasks import Reports, StopAfter, make_task
from transformers import AutoModel

RATE, HEAD_RATE = 1e-3, 3e-2
ROWS = [
    {"text": f"the {animal} sat on the {place} {word}", "label": label}
    for animal in ("cat", "dog", "bird")
    for place in ("mat", "tree", "house")
    for word, label in (("good", "up"), ("bad", "down"))
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


def task_of(directory: Path, encoder: Path, **optimization: Any) -> TrainTask:
    settings = {"max_steps": 6, "batch_rows": 4, "learning_rate": RATE, "max_gradient_norm": 0.0}
    return make_task(
        directory,
        encoder,
        train=ROWS,
        heldout=ROWS,
        task="text-classification",
        method="FULL",
        optimization=settings | optimization,
        classification={"class_weights": "NONE"},
    )


def trained(task: TrainTask) -> tuple[list[float], dict[str, torch.Tensor]]:
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    losses = [
        each.loss for each in reports.of(Progress) if each.phase == "training" and each.loss is not None
    ]
    return losses, load_file(Path(task.output_directory) / "adapter_model.safetensors")


def test_losses_and_weights_are_those_of_two_groups(encoder: Path, tmp_path: Path) -> None:
    task = task_of(tmp_path, encoder, head_learning_rate=HEAD_RATE)
    losses, tensors = trained(task)
    options = task.spec.optimization
    model: Any = AutoModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    head = torch.nn.Linear(model.config.hidden_size, 2)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    adam = torch.optim.AdamW(
        [{"params": model.parameters(), "lr": RATE}, {"params": head.parameters(), "lr": HEAD_RATE}],
        weight_decay=0.0,
    )
    plan, order = Plan.of(options, task.spec.evaluation), RowOrder(len(ROWS), 4, options.seed)
    ids = [torch.tensor([word_pieces().encode(row["text"]).ids]) for row in ROWS]
    targets = torch.tensor([["down", "up"].index(row["label"]) for row in ROWS])
    expected = []
    for step in range(6):
        share = plan.learning_rate(step) / RATE
        assert plan.head_learning_rate(step) == pytest.approx(share * HEAD_RATE)
        for group, peak in zip(adam.param_groups, (RATE, HEAD_RATE), strict=True):
            group["lr"] = share * peak
        rows = order.rows_of_step(step)
        vectors = torch.cat([model(input_ids=ids[row]).last_hidden_state.mean(1) for row in rows])
        loss = functional.cross_entropy(head(vectors), targets[rows])
        loss.backward()
        adam.step()
        adam.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-4)
    found = tensors["base_model.model.classifier.weight"]
    torch.testing.assert_close(found, head.weight.detach(), rtol=1e-2, atol=2e-4)
    # A head at the other parameters' rate is another one.
    _, alike = trained(task_of(tmp_path / "alike", encoder, head_learning_rate=RATE))
    assert (found - alike["base_model.model.classifier.weight"]).abs().max() > 0.01


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(encoder: Path, tmp_path: Path) -> None:
    whole = trained(task_of(tmp_path / "whole", encoder, head_learning_rate=HEAD_RATE))
    task = task_of(tmp_path / "stopped", encoder, head_learning_rate=HEAD_RATE)
    stop = StopAfter(3)
    assert run(task, stop, stop) == EXIT_STOPPED
    _, tensors = trained(task)
    assert tensors.keys() == whole[1].keys()
    assert all(torch.equal(tensor, whole[1][name]) for name, tensor in tensors.items())


def test_a_loss_that_is_no_number_names_both_rates(encoder: Path, tmp_path: Path) -> None:
    task = task_of(tmp_path, encoder, learning_rate=1.0, head_learning_rate=0.5)
    broken = task.spec.optimization.model_copy(update={"learning_rate": 1e30})
    task = task.model_copy(update={"spec": task.spec.model_copy(update={"optimization": broken})})
    with pytest.raises(TrainingDiverged, match=r"lower than 1e\+30, or a head_learning_rate lower than 0\.5"):
        run(task, Reports(), threading.Event())
