"""Every method of a base that sees images, through a real server: trained for classes, served together, out and in
again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned import Client, Full, Head, Image, Layers, Lora, Method, Optimization, Task, errors
from finetuned.values.encodings import LabelScore
from tiny_encoders import make_resnet_base, png, random_image
from tiny_server import TINY, TinyServer, running

JOBS: dict[str, dict[str, Any]] = {
    "head": {"head": Head(), "optimization": Optimization(max_steps=120, batch_rows=8, learning_rate=0.02)},
    "lora": {"lora": Lora(rank=2)},
    "rslora": {"lora": Lora(rank=2, rank_stabilized=True)},
    "dora": {"lora": Lora(rank=2, decomposed=True)},
    "layers": {"layers": Layers(last=1)},
    "full": {"full": Full()},
}
"""By the adapter's name."""
FAST = Optimization(max_steps=20, batch_rows=8, learning_rate=0.01)
RANDOM = np.random.default_rng(0)
# Even ones are dark, odd ones light.
IMAGES = [png(RANDOM.integers(0, 120, (16, 16)) + (130 if number % 2 else 0)) for number in range(40)]
LABELS = ["dark", "light"] * 20


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("vision")
    make_resnet_base(directory / "data" / "bases" / TINY)
    rows = directory / "images.jsonl"
    encoded = [base64.b64encode(image).decode() for image in IMAGES]
    rows.write_text(
        "".join(
            json.dumps({"image": image, "label": label}) + "\n"
            for image, label in zip(encoded, LABELS, strict=True)
        )
    )
    with running(directory / "data", max_running_jobs=2) as server, Client(server.endpoint) as client:
        client.datasets.upload(rows, "images")
        wanted: dict[str, Any] = {"dataset": "images", "task": Task.IMAGE_CLASSIFICATION}
        jobs = [
            client.train(adapter=name, **wanted, **{"optimization": FAST, **settings})
            for name, settings in JOBS.items()
        ]
        for job in jobs:
            client.jobs.wait(job.name, timeout_seconds=600.0).check()
        yield server


def ask(client: Client, name: str) -> tuple[LabelScore, ...]:
    """An image between the two labels, of which no method is as sure as another."""
    return client.classify(Image(random_image(1)), adapter=name)[0].labels


@pytest.mark.parametrize("name", JOBS)
def test_images_are_classified(vision: TinyServer, name: str) -> None:
    with Client(vision.endpoint) as client:
        version = client.adapters.version(f"{name}@1")
        job = client.jobs.get(version.lineage.job)
        answers = client.classify([Image(image) for image in IMAGES[:4]], adapter=name)
    figures, before = ({m.name: m.value for m in metrics} for metrics in (job.metrics, job.baseline_metrics))
    assert figures["accuracy"] == 1.0
    assert figures["loss"] < before["loss"]
    assert version.method is (Method(name.upper()) if name in {"head", "layers", "full"} else Method.LORA)
    assert [answer.label for answer in answers] == LABELS[:4]
    assert answers.served_by.label == f"{name}@1"


def test_all_are_served_together_as_each_alone(vision: TinyServer) -> None:
    names = [*JOBS] * 3
    with Client(vision.endpoint) as client:
        alone = {name: ask(client, name) for name in JOBS}
        with ThreadPoolExecutor(len(JOBS)) as threads:
            together = list(threads.map(lambda name: ask(client, name), names))
    for name, found in zip(names, together, strict=True):
        assert [score.label for score in found] == [score.label for score in alone[name]]
        np.testing.assert_allclose([s.score for s in found], [s.score for s in alone[name]], atol=1e-5)
    # Each by its own weights.
    assert len({round(scores[0].score, 4) for scores in alone.values()}) == len(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_an_export_is_imported_and_answers_alike(vision: TinyServer, tmp_path: Path, name: str) -> None:
    with Client(vision.endpoint) as client:
        before = client.adapters.version(f"{name}@1")
        client.adapters.export(f"{name}@1", tmp_path / "files")
        again = client.adapters.import_directory(
            tmp_path / "files", f"{name}-again", expected_base_digest=before.base_digest
        )
        assert again.digest == before.digest
        assert ask(client, f"{name}-again") == ask(client, name)


def test_what_a_base_of_images_takes_is_told_and_what_is_no_image_refused(vision: TinyServer) -> None:
    with Client(vision.endpoint) as client:
        assert client.server_info().methods == (Method.LORA, Method.HEAD, Method.LAYERS, Method.FULL)
        with pytest.raises(errors.InvalidField, match="does not decode"):
            client.classify(Image(b"nothing"), adapter="head")
