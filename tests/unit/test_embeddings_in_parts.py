"""Steps of pairs in parts: the gradient of the whole step, few texts in memory, and the same dropout both times."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.files import stored_digest
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED
from finetuned_service.training.embeddings.in_parts import vectors_in_parts
from finetuned_service.training.embeddings.model import EmbeddingModel
from finetuned_service.training.embeddings.pairs import read_embedding_data
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Pooling
from tiny_encoders import make_encoder_base
from torch import nn
from training_tasks import Reports, StopAfter, make_task

WORDS = ("cat", "dog", "bird", "mat", "tree", "house", "good", "bad")
PAIRS = [
    {"anchor": f"the {word}", "positive": f"a {word} sat", "negatives": [f"a {word} ran"]} for word in WORDS
]
SCORED = [{"sentence1": f"the {w}", "sentence2": f"a {w}", "score": n / 10} for n, w in enumerate(WORDS)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


def task_of(directory: Path, encoder: Path, rows: Sequence[dict[str, Any]], **optimization: Any) -> Any:
    return make_task(
        directory,
        encoder,
        train=rows,
        heldout=rows,
        task="feature-extraction",
        lora={"rank": 4, "dropout": optimization.pop("dropout", 0.0)},
        optimization={"max_steps": 4, "batch_rows": 8, "learning_rate": 0.01, **optimization},
    )


class Widest:
    """Notes how many texts run at once while gradients are asked for."""

    def __init__(self, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts, together = 0, model._together

        def noting(texts: Sequence[Any]) -> torch.Tensor:
            if torch.is_grad_enabled():
                self.texts = max(self.texts, len(texts))
            return together(texts)

        monkeypatch.setattr(model, "_together", noting)


@pytest.mark.parametrize(("rows", "texts"), [(PAIRS, 16), (SCORED, 8)], ids=["pairs", "scores"])
@pytest.mark.parametrize("halved", [False, True])
def test_a_step_in_parts_has_the_gradient_of_the_whole_step(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any, texts: int, halved: bool
) -> None:
    found: list[tuple[float, list[torch.Tensor]]] = []
    for at_once in (8, 2):
        micro = {} if halved else {"micro_batch_rows": at_once}
        task = task_of(tmp_path / str(at_once), encoder, rows, **micro)
        data = read_embedding_data(task.spec, encoder, Path(task.train_path), None)
        model = EmbeddingModel.load(
            encoder, task.spec, Pooling.MEAN, rows_at_once=at_once % 8 if halved else 0
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.02)
        widest = Widest(model, monkeypatch)
        batch = [*data.train, *data.heldout]
        loss = model.loss_of(batch, 1.0 / len(batch))
        loss.backward()
        assert widest.texts == texts * at_once // 8
        found.append(
            (loss.item(), [p.grad.clone() for _, p in model.named_parameters() if p.grad is not None])
        )
    (loss, whole), (loss_in_parts, in_parts) = found
    assert loss_in_parts == pytest.approx(loss, rel=1e-6)
    assert len(in_parts) == len(whole) > 0
    for one, other in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))

    def vectors(self, part: Sequence[torch.Tensor]) -> torch.Tensor:
        return nn.functional.dropout(torch.stack(list(part)), 0.5) @ self.weight.T


def test_what_is_dropped_is_the_same_both_times_and_later_draws_are_others() -> None:
    model = Dropping()
    inputs = list(torch.randn(6, 4, generator=torch.Generator().manual_seed(2)))
    parts = [inputs[:2], inputs[2:5], inputs[5:]]
    torch.manual_seed(3)
    expected = torch.cat([model.vectors(part) for part in parts])
    (expected.square().sum()).backward()
    assert model.weight.grad is not None
    gradient, model.weight.grad = model.weight.grad.clone(), None
    after = torch.rand(1)
    torch.manual_seed(3)
    found = vectors_in_parts(model, parts, model.vectors)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    torch.testing.assert_close(model.weight.grad, gradient)
    assert torch.equal(torch.rand(1), after)


def test_a_run_in_parts_that_was_stopped_goes_on_to_the_same_weights(encoder: Path, tmp_path: Path) -> None:
    made = [
        task_of(tmp_path / name, encoder, PAIRS, micro_batch_rows=2, dropout=0.2)
        for name in ("whole", "parts")
    ]
    stop = StopAfter(2)
    assert run(made[1], stop, stop) == EXIT_STOPPED
    for task in made:
        assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    assert len({stored_digest(Path(task.output_directory)) for task in made}) == 1
