"""Texts with several labels each, by every method that encoders take: what a server answers of a version is what its job
measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned import Client
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished
from finetuned_service.training.run import run
from tiny_encoders import make_encoder_base
from tiny_server import TINY, TinyServer, running
from training_tasks import Reports, make_task

LABELS = ("cat", "down", "other", "up")
TEXTS = [
    (animal, word, f"the {animal} {verb} on the {place} {word}")
    for animal in ("cat", "dog", "bird")
    for verb in ("sat", "ran")
    for place in ("mat", "tree")
    for word in ("good", "bad", "happy", "awful")
]
ROWS = [
    {
        "text": text,
        "labels": ["cat" if animal == "cat" else "other", "up" if word in {"good", "happy"} else "down"],
    }
    for animal, word, text in TEXTS
]
METHODS: dict[str, dict[str, Any]] = {
    "head": {"method": "HEAD"},
    "lora": {"lora": {"rank": 4}},
    "rslora": {"lora": {"rank": 4, "rank_stabilized": True}},
    "dora": {"lora": {"rank": 4, "decomposed": True}},
    "ia3": {"method": "IA3"},
    "houlsby": {"method": "BOTTLENECK", "bottleneck": {"width": 4}},
    "pfeiffer": {"method": "BOTTLENECK", "bottleneck": {"placement": "PFEIFFER", "width": 4}},
    "layers": {"method": "LAYERS", "layers": {"last": 1}},
    "full": {"method": "FULL"},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("encoder")
    make_encoder_base(directory / "data" / "bases" / TINY)
    with running(directory / "data", run_jobs=False, max_queued_sequences=32) as server:
        yield server


def mean_loss(scores: list[dict[str, float]], rows: list[dict[str, Any]]) -> float:
    """Binary cross-entropy by its definition, over all labels of all rows."""
    right = [
        found[label] if label in row["labels"] else 1 - found[label]
        for found, row in zip(scores, rows, strict=True)
        for label in LABELS
    ]
    return float(-np.log(right).mean())


@pytest.mark.parametrize("name", METHODS)
def test_a_server_answers_what_the_job_measured(encoder: TinyServer, tmp_path: Path, name: str) -> None:
    held_out = ROWS[::3]
    task = make_task(
        tmp_path,
        encoder.base_directory,
        train=[row for number, row in enumerate(ROWS) if number % 3],
        heldout=held_out,
        task="text-classification",
        optimization={"max_steps": 30, "batch_rows": 8, "learning_rate": 0.01},
        **METHODS[name],
    )
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    figures, before = (
        {metric.name: metric.value for metric in metrics}
        for metrics in (finished.metrics, finished.baseline_metrics)
    )
    assert figures["loss"] < before["loss"]

    with Client(encoder.endpoint) as client:
        digest = client.server_info().base.digest
        client.adapters.import_directory(task.output_directory, name, expected_base_digest=digest)
        answers = client.classify([row["text"] for row in held_out], adapter=name)
    scores = [{found.label: found.score for found in answer.labels} for answer in answers]
    assert mean_loss(scores, held_out) == pytest.approx(figures["loss"], rel=1e-4)
    told = {sample.prompt: sample.answer for sample in finished.samples}
    assert told
    for row, found in zip(held_out, scores, strict=True):
        likely = ", ".join(label for label in LABELS if found[label] > 0.5) or "none"
        assert told.get(row["text"], likely) == likely
