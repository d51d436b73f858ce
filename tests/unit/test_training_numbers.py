"""Numbers are learnt in their own unit: what a job learns of them does not depend on how large they are."""

from __future__ import annotations

import math
import statistics
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned_service.adapters.files import stored_digest, stored_head
from finetuned_service.errors import InvalidData
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished
from finetuned_service.training.adapter import adapter_handle
from finetuned_service.training.heads.evaluate import answered, scored
from finetuned_service.training.heads.examples import HeadData, read_head_data
from finetuned_service.training.heads.unit import Unit
from finetuned_service.training.run import run
from tiny_encoders import make_encoder_base
from training_tasks import Reports, StopAfter, make_task

WORDS = ("good", "bad", "happy", "awful")
STARS = {"good": 4.0, "happy": 5.0, "bad": 2.0, "awful": 1.0}
TEXTS = [
    (f"the {animal} sat on the {place} {word}", STARS[word])
    for animal in ("cat", "dog", "bird")
    for place in ("mat", "tree", "house")
    for word in WORDS
]
METHODS: dict[str, dict[str, Any]] = {
    "head": {"method": "HEAD", "optimization": {"max_steps": 60, "learning_rate": 0.1}},
    "lora": {"method": "LORA", "optimization": {"max_steps": 60, "learning_rate": 5e-3}},
    "layers": {
        "method": "LAYERS",
        "layers": {"last": 1},
        "optimization": {"max_steps": 60, "learning_rate": 3e-3},
    },
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


def rows(spread: float, mean: float) -> list[dict[str, Any]]:
    return [{"text": text, "score": mean + spread * stars} for text, stars in TEXTS]


def learn(
    directory: Path, base: Path, told: list[dict[str, Any]], method: str, **changes: Any
) -> tuple[Any, ...]:
    """The adapter's place, its figures, the losses of its steps, and what it answers to the rows."""
    task = make_task(
        directory, base, train=told, heldout=told, task="text-classification", **METHODS[method]
    ).model_copy(update=changes)
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    made = Path(task.output_directory)
    data = data_of(task)
    outputs = answered(base, adapter_handle(made, base), data.heldout, data.head, 1)
    figures = {metric.name: metric.value for metric in reports.of(TrainFinished)[0].metrics}
    losses = [progress.loss for progress in reports.of(Progress) if progress.phase == "training"]
    return made, figures, losses, np.concatenate(outputs)[:, 0].astype(np.float64)


def data_of(task: Any) -> HeadData:
    return read_head_data(task.spec, Path(task.base_directory), Path(task.train_path), Path(task.eval_path))


@pytest.mark.parametrize("method", list(METHODS))
def test_prices_are_learnt_as_stars_are(encoder: Path, tmp_path: Path, method: str) -> None:
    _, stars, losses, told = learn(tmp_path / "stars", encoder, rows(1.0, 0.0), method)
    assert stars["loss"] < 0.8 * losses[0]
    assert stars["spearman"] > 0.5
    for name, spread, mean in (("prices", 2.0**17, 2.0**19), ("traces", 2.0**-20, 0.0)):
        _, figures, found, answers = learn(tmp_path / name, encoder, rows(spread, mean), method)
        assert found == pytest.approx(losses, rel=1e-3)
        np.testing.assert_allclose((answers - mean) / spread, told, rtol=2e-3, atol=2e-3)
        assert figures["loss"] == pytest.approx(stars["loss"], rel=2e-2)
        assert figures["mean_absolute_error"] == pytest.approx(
            spread * stars["mean_absolute_error"], rel=2e-2
        )


def test_figures_are_those_of_the_definition(encoder: Path, tmp_path: Path) -> None:
    told = rows(1000.0, 5.0)
    _, figures, _, answers = learn(tmp_path, encoder, told, "head")
    wanted = np.array([row["score"] for row in told])
    # The held-out rows are the training rows here.
    assert figures["loss"] == pytest.approx(((answers - wanted) ** 2).mean() / wanted.var(), rel=1e-6)
    assert figures["mean_absolute_error"] == pytest.approx(np.abs(answers - wanted).mean(), rel=1e-6)
    task = make_task(
        tmp_path / "again", encoder, train=told, heldout=told, task="text-classification", method="HEAD"
    )
    data = data_of(task)
    mean = [np.full((1, 1), wanted.mean(), np.float32)] * len(told)
    said = {metric.name: metric.value for metric in scored(mean, data.heldout, data.head, data.unit).metrics}
    assert said["loss"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_version_of_other_numbers_is_continued_where_it_was(
    encoder: Path, tmp_path: Path, method: str
) -> None:
    made, _, _, first = learn(tmp_path / "first", encoder, rows(1.0, 0.0), method)
    still = METHODS[method] | {"optimization": {"max_steps": 1, "learning_rate": 1e-12}}
    if method != "head":
        still["optimization"] |= {"head_learning_rate": 1e-12}
    # Other rows have another unit; what the version says of a text is the same.
    told = rows(300.0, 7.0)
    task = make_task(
        tmp_path / "second", encoder, train=told, heldout=told, task="text-classification", **still
    )
    task = task.model_copy(update={"start_directory": str(made)})
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    after = Path(task.output_directory)
    assert stored_head(after) == stored_head(made)
    data = data_of(task)
    second = np.concatenate(answered(encoder, adapter_handle(after, encoder), data.heldout, data.head, 1))[
        :, 0
    ]
    np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_job_of_numbers_that_was_stopped_goes_on_to_the_same_bytes(
    encoder: Path, tmp_path: Path, method: str
) -> None:
    told = rows(300.0, 70_000.0)
    whole, *_ = learn(tmp_path / "whole", encoder, told, method)
    task = make_task(
        tmp_path / "parts", encoder, train=told, heldout=told, task="text-classification", **METHODS[method]
    )
    stop = StopAfter(37)
    assert run(task, stop, stop) == EXIT_STOPPED
    again = Reports()
    assert run(task, again, threading.Event()) == EXIT_FINISHED
    assert again.of(Notice)[0].text == "goes on from the checkpoint after step 37"
    assert stored_digest(Path(task.output_directory)) == stored_digest(whole)


def test_a_number_that_no_head_can_tell_is_refused(encoder: Path, tmp_path: Path) -> None:
    told = [*rows(1.0, 0.0), {"text": "the cat sat", "score": -2e38}]
    task = make_task(
        tmp_path, encoder, train=told, heldout=rows(1.0, 0.0), task="text-classification", method="HEAD"
    )
    with pytest.raises(InvalidData, match=r"has the score -2e\+38; a head tells numbers up to 1.0e\+38"):
        run(task, Reports(), threading.Event())


def test_the_unit_of_numbers() -> None:
    numbers = [3.0, -4.0, 10.0, 10.0]
    unit = Unit.of(numbers)
    assert (unit.mean, unit.spread) == (4.75, pytest.approx(statistics.pstdev(numbers)))
    assert [unit.told(number) for number in numbers] == pytest.approx(
        [(number - 4.75) / statistics.pstdev(numbers) for number in numbers]
    )
    assert Unit.of([7.0, 7.0]) == Unit(7.0, 1.0)
    assert Unit.of([7.0]).told(7.0) == 0.0
    assert Unit.of([0.1] * 3) == Unit(0.1, 1.0)
    largest = Unit.of([-1e300, 1e300])
    assert math.isclose(largest.spread, 1e300)
    assert (largest.told(1e300), largest.told(-1e300)) == pytest.approx((1.0, -1.0))
