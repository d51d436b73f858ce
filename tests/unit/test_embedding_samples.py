"""Samples of embedding jobs: right is what the metrics count as right, by tokens and among all that belong to an anchor."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished
from finetuned_service.training.embeddings.evaluate import scored
from finetuned_service.training.embeddings.pairs import PairExample
from finetuned_service.training.run import run
from tiny_encoders import make_encoder_base
from training_tasks import Reports, make_task

FIRST, SECOND, CAT, DOG = (2, 5, 3), (2, 6, 3), (2, 7, 3), (2, 8, 3)
VECTORS = {
    FIRST: np.array([1, 0], np.float32),
    SECOND: np.array([0, 1], np.float32),
    CAT: np.array([1, 0.1], np.float32),
    DOG: np.array([1, 0.2], np.float32),
}


def test_any_text_of_the_anchor_is_right_however_it_is_spelled() -> None:
    several = [
        PairExample(FIRST, CAT, texts=("q", "cat")),
        PairExample(FIRST, DOG, texts=("q", "dog")),
        PairExample(SECOND, CAT, texts=("r", "cat")),
    ]
    found = scored(several, VECTORS)
    # Nearest to the first is the cat, which belongs to it; nearest to the second the dog, which does not.
    assert (found.answers, found.correct) == (("cat", "cat", "dog"), (True, True, False))
    spelled = [PairExample(FIRST, CAT, texts=("q", "Cat")), PairExample(SECOND, CAT, texts=("r", "cat"))]
    assert scored(spelled, VECTORS).correct == (True, True)
    alike = [PairExample(FIRST, CAT, score=0.5), PairExample(SECOND, DOG, score=0.1)]
    assert scored(alike, VECTORS).correct == (False, False)


def test_samples_of_a_job_say_what_its_metrics_say(tmp_path: Path) -> None:
    base = make_encoder_base(tmp_path / "base")
    pairs = [
        ("the cat", "a cat sat"),
        ("the cat", "A CAT ran"),
        ("a dog", "The dog ran"),
        ("a bird", "the dog ran"),
    ]
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in pairs]
    task = make_task(
        tmp_path,
        base,
        train=rows,
        heldout=rows,
        task="feature-extraction",
        optimization={"max_steps": 2, "batch_rows": 2},
    )
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    finished = reports.of(TrainFinished)[0]
    right = {sample.prompt: sample.correct for sample in finished.samples}
    belonging = {anchor: sum(anchor == other for other, _ in pairs) for anchor, _ in pairs}
    shares = [right[anchor] / texts for anchor, texts in belonging.items()]
    assert {m.name: m.value for m in finished.metrics}["recall_at_1"] == pytest.approx(np.mean(shares))
