"""Methods on a base that encodes, through a real server: trained for classes, tags and vectors, served together, out
and in again, and what is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned import (
    Bottleneck,
    BottleneckPlacement,
    Client,
    ContrastiveOptions,
    Full,
    Head,
    Ia3,
    Layers,
    Lora,
    Method,
    Objective,
    Optimization,
    PromoteIf,
    Task,
    errors,
)
from tiny_encoders import make_encoder_base
from tiny_server import TINY, TinyServer, running

MOODS = [
    {"text": f"the {animal} {verb} on the {place} {word}", "label": label}
    for animal in ("cat", "dog", "bird")
    for verb in ("sat", "ran")
    for place in ("mat", "tree")
    for word, label in (("good", "up"), ("bad", "down"), ("happy", "up"), ("awful", "down"))
]
TAGS = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "tree": "B-PLACE"}
TAGGED = [
    {"tokens": words, "tags": [TAGS.get(word, "O") for word in words]}
    for words in (
        f"{first} {animal} {verb} {where} the {place}".split()
        for first in ("the", "a")
        for animal in ("cat", "dog")
        for verb in ("sat", "ran")
        for where in ("on", "under")
        for place in ("tree", "mat")
    )
]
PAIRS = [
    {"anchor": f"{mood} {animal}", "positive": f"the {place} {verb} {word}"}
    for mood, word in (("good", "fine"), ("bad", "awful"), ("happy", "sad"))
    for animal, place in (("cat", "mat"), ("dog", "tree"), ("bird", "house"))
    for verb in ("sat", "ran", "flew")
]
FAST = Optimization(max_steps=50, batch_rows=8, learning_rate=0.01)
SLOWER = Optimization(max_steps=20, batch_rows=8, learning_rate=0.002)
JOBS: dict[str, dict[str, Any]] = {
    "moods": {
        "task": Task.TEXT_CLASSIFICATION,
        "lora": Lora(rank=4, modules_to_save=("embeddings.LayerNorm", "word_embeddings")),
    },
    "tagged": {"task": Task.TOKEN_CLASSIFICATION, "ia3": Ia3()},
    "pairs": {"task": Task.FEATURE_EXTRACTION},
    "moods-full": {"task": Task.TEXT_CLASSIFICATION, "full": Full(), "optimization": SLOWER},
    "pairs-narrow": {"task": Task.FEATURE_EXTRACTION, "bottleneck": Bottleneck(width=4)},
}
"""By the adapter's name, which begins with the dataset's."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("encoder")
    make_encoder_base(directory / "data" / "bases" / TINY)
    with running(directory / "data") as server, Client(server.endpoint) as client:
        for name, rows in (("moods", MOODS), ("tagged", TAGGED), ("pairs", PAIRS)):
            client.datasets.upload(write(directory / f"{name}.jsonl", rows), name)
        promotion = PromoteIf(alias="best", minimum=0.1)
        jobs = [
            client.train(
                dataset=name.partition("-")[0],
                adapter=name,
                promote_if=promotion,
                **{"optimization": FAST, **settings},
            )
            for name, settings in JOBS.items()
        ]
        for job in jobs:
            client.jobs.wait(job.name, timeout_seconds=600.0).check()
        yield server


def ask(client: Client, name: str) -> list[float]:
    """The numbers that one adapter answers with, or the plain base's."""
    text = "the happy cat sat on the tree"
    match name.partition("-")[0]:
        case "moods":
            return [score.score for score in client.classify(text, adapter=f"{name}@best")[0].labels]
        case "tagged":
            return [token.score for token in client.tag_tokens(text, adapter=f"{name}@best")[0].tokens]
        case "pairs":
            return list(client.embed(text, adapter=f"{name}@best")[0].values)
        case _:
            return list(client.embed(text, plain_base=True)[0].values)


def test_all_are_served_together_as_each_alone(encoder: TinyServer) -> None:
    names = [*JOBS, "base"]
    with Client(encoder.endpoint) as client:
        alone = {name: ask(client, name) for name in names}
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(lambda name: ask(client, name), names * 4))
        versions = {name: client.adapters.version(f"{name}@1") for name in JOBS}
        served = client.embed("a dog", adapter="pairs").served_by
    for name, found in zip(names * 4, together, strict=True):
        np.testing.assert_allclose(found, alone[name], atol=1e-5)
    assert not np.allclose(alone["pairs"], alone["base"], atol=1e-3)
    assert [(v.method, v.task, v.modules) for v in versions.values()] == [
        (Method.LORA, Task.TEXT_CLASSIFICATION, 15),
        (Method.IA3, Task.TOKEN_CLASSIFICATION, 9),
        (Method.LORA, Task.FEATURE_EXTRACTION, 12),
        (Method.FULL, Task.TEXT_CLASSIFICATION, 21),
        (Method.BOTTLENECK, Task.FEATURE_EXTRACTION, 4),
    ]
    assert (served.modules, served.label) == (12, "pairs@1")


def test_what_a_job_told_is_what_callers_get(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        job = client.jobs.get(client.adapters.version("moods@1").lineage.job)
        answers = client.classify([sample.prompt for sample in job.samples], adapter="moods")
        assert [answer.label for answer in answers] == [sample.answer for sample in job.samples]
        vectors = client.jobs.get(client.adapters.version("pairs@1").lineage.job)
    assert vectors.train is not None
    assert vectors.train.objective is Objective.CONTRASTIVE
    assert vectors.train.contrastive == ContrastiveOptions(scale=20.0)
    assert {metric.name for metric in vectors.metrics} == {"mrr_at_10", "recall_at_1", "recall_at_10"}
    assert {metric.name for metric in vectors.baseline_metrics} == {
        "mrr_at_10",
        "recall_at_1",
        "recall_at_10",
    }


@pytest.mark.parametrize("name", list(JOBS))
def test_an_export_is_imported_and_answers_alike(encoder: TinyServer, tmp_path: Path, name: str) -> None:
    with Client(encoder.endpoint) as client:
        before = ask(client, name)
        version = client.adapters.version(f"{name}@1")
        client.adapters.export(f"{name}@1", tmp_path / "files")
        again = client.adapters.import_directory(
            tmp_path / "files", name, expected_base_digest=version.base_digest
        )
        assert again.digest == version.digest
        client.adapters.set_alias(f"{name}@best", 2)
        assert ask(client, name) == before


def test_what_does_not_fit_is_refused_before_anything_is_stored(encoder: TinyServer, tmp_path: Path) -> None:
    scored = write(
        tmp_path / "far.jsonl", [{"sentence1": word, "sentence2": "b", "score": 4.5} for word in "cdef"]
    )
    with Client(encoder.endpoint) as client:
        client.datasets.upload(scored, "far")
        jobs = len(list(client.jobs.list()))
        moods: dict[str, Any] = {"dataset": "moods", "task": Task.TEXT_CLASSIFICATION}
        pairs: dict[str, Any] = {"dataset": "pairs", "task": Task.FEATURE_EXTRACTION}
        for options, message in (
            (
                {**moods, "lora": Lora(modules_to_save=("query",))},
                "names modules that are targets, too",
            ),
            ({**moods, "layers": Layers(layers=(2,))}, "names 2; the base's layers are 0 to 1"),
            (
                {**pairs, "bottleneck": Bottleneck(placement=BottleneckPlacement.PARALLEL)},
                "is PARALLEL, and this base has no module for it",
            ),
            ({**pairs, "layers": Layers(modules=("lm_head",))}, "names 'lm_head'; the base's modules with"),
            (
                {**moods, "lora": Lora(target_modules=("q_proj",))},
                "names 'q_proj'; the base's linear modules",
            ),
            ({**moods, "contrastive": ContrastiveOptions(scale=5.0)}, "is set for text-classification"),
            (
                {**pairs, "contrastive": ContrastiveOptions(scale=0.0)},
                "scale is 0.0: input should be greater",
            ),
            ({**moods, "optimization": Optimization(activation_checkpointing=True)}, "is on; it is for text"),
            ({**pairs, "dataset": "moods"}, "holds LABELLED_TEXT rows"),
            ({**pairs, "dataset": "far"}, "has the score 4.5; a cosine is learned"),
        ):
            with pytest.raises((errors.InvalidField, errors.InvalidData), match=message):
                client.train(adapter="mine", **options)
        with pytest.raises(errors.Unimplemented, match="METHOD_HEAD for TASK_FEATURE_EXTRACTION"):
            client.train(adapter="mine", head=Head(), **pairs)
        with pytest.raises(errors.InvalidField, match="was trained for feature-extraction: ask it to embed"):
            client.classify("a cat", adapter="pairs")
        assert len(list(client.jobs.list())) == jobs


def test_a_method_beside_a_head_goes_on_from_its_version(encoder: TinyServer) -> None:
    tagged: dict[str, Any] = {
        "dataset": "tagged",
        "task": Task.TOKEN_CLASSIFICATION,
        "continue_from": "tagged@1",
    }
    with Client(encoder.endpoint) as client:
        jobs = len(list(client.jobs.list()))
        for options, message in (
            ({"ia3": Ia3(target_modules=("key",))}, r"spec\.ia3\.target_modules: is \('key',\)"),
            ({"lora": Lora()}, "of method IA3; this job's is LORA"),
            (
                {"ia3": Ia3(), "dataset": "moods", "task": Task.TEXT_CLASSIFICATION},
                "for the task token-class",
            ),
            (
                {
                    "lora": Lora(),
                    "dataset": "moods",
                    "task": Task.TEXT_CLASSIFICATION,
                    "continue_from": "pairs",
                },
                "for the task feature-extraction; this job's is text-classification",
            ),
        ):
            with pytest.raises(errors.InvalidField, match=message):
                client.train(adapter="mine", **{**tagged, **options})
        assert len(list(client.jobs.list())) == jobs
        once = Optimization(max_steps=1, batch_rows=8, learning_rate=1e-9)
        begun = client.train(adapter="on", ia3=Ia3(), optimization=once, **tagged)
        first = client.jobs.get(client.adapters.version("tagged@1").lineage.job)
        assert begun.train is not None
        assert first.train is not None
        assert begun.train.ia3 is not None
        assert first.train.ia3 is not None
        # Told by their full names: not all modules called `dense` are among them.
        names = begun.train.ia3.target_modules
        assert len(names) == 8
        assert all(name.endswith(first.train.ia3.target_modules) for name in names)
        done = client.jobs.wait(begun.name, timeout_seconds=600.0).check()
    for before, after in zip(first.metrics, done.metrics, strict=True):
        assert after.value == pytest.approx(before.value, rel=1e-4)
