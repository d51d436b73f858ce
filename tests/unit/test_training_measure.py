"""Evaluations between steps: the task's figures, equal to those that the engine that serves finds at the end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.jobs.events import EvaluationFinished
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished
from finetuned_service.training.embeddings import figures
from finetuned_service.training.embeddings.figures import normalized, rankings
from finetuned_service.training.heads.adapted import AdaptedEncoder
from finetuned_service.training.heads.examples import read_head_data
from finetuned_service.training.heads.measure import measure
from finetuned_service.training.loop import heldout_loss
from finetuned_service.training.run import run
from tiny_encoders import make_encoder_base, make_resnet_base
from training_tasks import Reports, make_task
from unit.test_training_embeddings import PAIRS
from unit.test_training_heads import MOODS, image_rows

TAG = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "bird": "B-ANIMAL", "good": "B-MOOD", "bad": "B-MOOD"}
SEVERAL = [
    {"text": row["text"], "labels": [row["label"], "cat"] if "cat" in row["text"] else [row["label"]]}
    for row in MOODS
]
NUMBERS = [{"text": row["text"], "score": 700.0 if row["label"] == "up" else 100.0} for row in MOODS]
TAGS = [
    {"tokens": row["text"].split(), "tags": [TAG.get(word, "O") for word in row["text"].split()]}
    for row in MOODS
]
SCORED = [
    {"sentence1": row["anchor"], "sentence2": row["positive"], "score": number % 7 / 7 - 0.2}
    for number, row in enumerate(PAIRS)
]
LORA = {"method": "LORA", "lora": {"dropout": 0.2}}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]] = {
    "classes": (MOODS, {"task": "text-classification", "method": "HEAD"}, ("macro_f1", "accuracy")),
    "classes by LoRA": (MOODS, {"task": "text-classification", **LORA}, ("macro_f1", "accuracy")),
    "several labels": (
        SEVERAL,
        {"task": "text-classification", **LORA},
        ("micro_f1", "macro_f1", "exact_match"),
    ),
    "numbers": (
        NUMBERS,
        {"task": "text-classification", **LORA},
        ("spearman", "pearson", "mean_absolute_error"),
    ),
    "tags": (TAGS, {"task": "token-classification", **LORA}, ("entity_f1", "accuracy")),
    "images": (
        image_rows(),
        {"task": "image-classification", **LORA, "optimization": {"learning_rate": 1e-3}},
        ("accuracy", "macro_f1"),
    ),
    "pairs": (PAIRS, {"task": "feature-extraction", **LORA}, ("mrr_at_10", "recall_at_1", "recall_at_10")),
    "scored pairs": (SCORED, {"task": "feature-extraction", **LORA}, ("spearman", "pearson")),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_resnet_base(tmp_path_factory.mktemp("bases") / "tiny")


def named(metrics: Any) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


@pytest.mark.parametrize("case", CASES)
def test_figures_on_the_way_are_those_of_the_end(
    encoder: Path, vision: Path, tmp_path: Path, case: str
) -> None:
    rows, settings, names = CASES[case]
    base = vision if case == "images" else encoder
    optimization = {
        "max_steps": 12,
        "batch_rows": 8,
        "learning_rate": 0.005,
        **settings.get("optimization", {}),
    }
    settings = {**settings, "optimization": optimization, "evaluation": {"evaluations": 3}}
    task = make_task(tmp_path, base, train=rows, heldout=rows, **settings)
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    told = [event for event in reports.of(EvaluationFinished) if event.subject == "adapter"]
    *on_the_way, at_the_end = told
    assert [event.step for event in on_the_way] == [4, 8, 12]
    for event in on_the_way:
        found = named(event.metrics)
        assert next(iter(found)) == "loss"
        assert found.keys() == {"loss", *names}
        assert len(event.metrics) == len(found)
        assert event.confusion is None
        ways = {metric.name: metric.higher_is_better for metric in finished.metrics}
        assert {m.name: m.higher_is_better for m in event.metrics if m.name != "loss"} == {
            name: ways[name] for name in names
        }
    (best,) = [event for event in on_the_way if event.step == at_the_end.step]
    expected = named(finished.metrics)
    found = named(best.metrics)
    assert {name: found[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, rel=1e-4, abs=1e-4
    )


class Counting:
    """A learner that counts the rows that pass through it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.rows, self.training = inner, 0, True

    @property
    def head(self) -> Any:
        return self.inner.head

    def train(self, mode: bool) -> None:
        self.training = mode
        self.inner.train(mode)

    def outputs_of(self, rows: Any) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.rows += len(rows)
        return self.inner.outputs_of(rows)

    def loss_of(self, rows: Any, scale: float) -> torch.Tensor:
        return self.inner.loss_of(rows, scale)


def test_one_pass_gives_loss_and_figures(encoder: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path, encoder, train=NUMBERS, heldout=NUMBERS, task="text-classification", **LORA)
    data = read_head_data(task.spec, encoder, Path(task.train_path), Path(task.eval_path))
    inner = AdaptedEncoder.load(encoder, task.spec, data.head, data.weights, unit=data.unit)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)  # of the CPU, wherever the weights are
        inner.head.weight.copy_(torch.randn(inner.head.weight.shape, generator=generator))
    model = Counting(inner)
    found = measure(model, data.head, data.unit, data.heldout)
    assert model.training
    assert model.rows == len(data.heldout)
    assert found.loss == heldout_loss(model, data.heldout)


def test_a_large_corpus_is_ranked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    queries, corpus = (generator.normal(size=(count, 8)).astype(np.float32) for count in (7, 30))
    monkeypatch.setattr(figures, "_QUERIES_AT_ONCE", 3)
    expected = np.argsort(-(normalized(queries) @ normalized(corpus).T), axis=1, kind="stable")[:, :10]
    assert rankings(queries, corpus).tolist() == expected.tolist()
