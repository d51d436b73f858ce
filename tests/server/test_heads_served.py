"""Heads trained and served by a real server: classes of texts, tags of tokens, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_clients import open_client
from finetuned import (
    Bottleneck,
    ClassificationOptions,
    ClassWeights,
    Client,
    Head,
    Ia3,
    Lora,
    Method,
    Optimization,
    Pooling,
    PromoteIf,
    Task,
    TextPair,
    errors,
)
from safetensors.torch import load_file, save_file
from tiny_encoders import make_encoder_base, make_vision_base, png
from tiny_server import TINY, TinyServer, running

MOODS = [
    {"text": f"the {animal} {verb} on the {place} {word}", "label": label}
    for animal in ("cat", "dog", "bird")
    for verb in ("sat", "ran")
    for place in ("mat", "tree")
    for word, label in (("good", "up"), ("bad", "down"), ("happy", "up"), ("awful", "down"))
]
TAGS = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "birds": "B-ANIMAL", "tree": "B-PLACE"}
SENTENCES = [
    f"{first} {animal} {verb} {where} the {place}".split()
    for first in ("the", "a")
    for animal in ("cat", "dog", "birds")
    for verb in ("sat", "ran")
    for where in ("on", "under")
    for place in ("tree", "mat")
]
TAGGED = [{"tokens": words, "tags": [TAGS.get(word, "O") for word in words]} for words in SENTENCES]
FAST = Optimization(max_steps=120, batch_rows=8, learning_rate=0.02)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("encoder")
    make_encoder_base(directory / "data" / "bases" / TINY)
    with running(directory / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(write(directory / "moods.jsonl", MOODS), "moods")
        client.datasets.upload(write(directory / "tagged.jsonl", TAGGED), "tagged")
        for dataset, task in (("moods", Task.TEXT_CLASSIFICATION), ("tagged", Task.TOKEN_CLASSIFICATION)):
            job = client.train(dataset=dataset, adapter=dataset, task=task, head=Head(), optimization=FAST)
            client.jobs.wait(job.name).check()
        yield server


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_texts_are_classified_in_the_labels_of_the_dataset(encoder: TinyServer, kind: str) -> None:
    with open_client(kind, encoder.endpoint, tenant="default") as client:
        # What the job itself was answered by the engine, on rows that it held out.
        samples = client.jobs.get(client.adapters.version("moods@1").lineage.job).samples[:4]
        texts = [sample.prompt for sample in samples]
        answers = client.classify(texts, adapter="moods")
        version = client.adapters.version("moods@1")
        best = client.classify(texts[0], adapter="moods", top_k=1)
    assert [answer.label for answer in answers] == [sample.answer for sample in samples]
    assert {sample.expected for sample in samples} <= {"up", "down"}
    for answer in answers:
        assert sorted(score.label for score in answer.labels) == ["down", "up"]
        assert sum(score.score for score in answer.labels) == pytest.approx(1.0)
    assert best[0].labels == answers[0].labels[:1]
    assert (answers.served_by.modules, answers.served_by.label) == (1, "moods@1")
    assert (version.method, version.task) == (Method.HEAD, Task.TEXT_CLASSIFICATION)
    assert {metric.name for metric in version.metrics} == {"accuracy", "macro_f1", "loss"}


def test_tokens_are_tagged_with_their_places_in_the_text(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        tagging = client.tag_tokens("A dog, ran under the tree!", adapter="tagged")[0]
    assert [(token.start, token.end) for token in tagging.tokens] == [
        (0, 1), (2, 5), (5, 6), (7, 10), (11, 16), (17, 20), (21, 25), (25, 26),
    ]  # fmt: skip
    labels = {(e.label, e.text, e.start) for e in tagging.entities}
    assert ("ANIMAL", "dog", 2) in labels
    with Client(encoder.endpoint) as client:
        pieces = client.tag_tokens("the birds sat", adapter="tagged")[0]
    # `birds` is two pieces of the tokenizer and one word to who asks.
    assert [(token.start, token.end) for token in pieces.tokens] == [(0, 3), (4, 9), (10, 13)]


def test_heads_and_the_plain_base_run_in_one_batch(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        alone = client.classify("the cat sat good", adapter="moods")[0].labels
        with_others = [
            client.classify(["the cat sat good", "a dog ran"], adapter="moods")[0].labels,
            client.classify(["the bird flew over the house", "the cat sat good"], adapter="moods")[1].labels,
        ]
    for labels in with_others:
        assert [score.label for score in labels] == [score.label for score in alone]
        np.testing.assert_allclose([s.score for s in labels], [s.score for s in alone], atol=1e-6)


def test_pairs_of_texts_are_asked_as_they_were_trained(encoder: TinyServer, tmp_path: Path) -> None:
    rows = [
        {
            "text": f"the {a} is {x}",
            "text_pair": f"the {b} is {y}",
            "label": "first" if x == "good" else "second",
        }
        for a in ("cat", "dog", "bird")
        for b in ("mat", "tree", "house")
        for x, y in (("good", "bad"), ("bad", "good"))
        for _ in range(2)
    ]
    with Client(encoder.endpoint) as client:
        client.datasets.upload(write(tmp_path / "pairs.jsonl", rows), "pairs")
        job = client.train(
            dataset="pairs", adapter="pairs", task=Task.TEXT_CLASSIFICATION, head=Head(), optimization=FAST
        )
        done = client.jobs.wait(job.name).check()
        pairs = [TextPair(row["text"], row["text_pair"]) for row in rows[:4]]
        answers = client.classify(pairs, adapter="pairs")
        assert [answer.label for answer in answers] == [row["label"] for row in rows[:4]]
        with pytest.raises(errors.InvalidField, match="is a pair of texts; only classify takes pairs"):
            client.tag_tokens(pairs, adapter="tagged")  # pyright: ignore[reportArgumentType] - what is refused
    assert done.train is not None
    assert done.train.classification is not None
    assert done.train.classification.class_weights is ClassWeights.BALANCED


def test_an_adapter_of_another_task_is_refused(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        with pytest.raises(
            errors.InvalidField, match="was trained for token-classification: ask it to tag_tokens"
        ):
            client.classify("the cat", adapter="tagged")
        with pytest.raises(
            errors.InvalidField, match="was trained for text-classification: ask it to classify"
        ):
            client.embed("the cat", adapter="moods")


def test_an_export_is_imported_and_answers_alike(encoder: TinyServer, tmp_path: Path) -> None:
    with Client(encoder.endpoint) as client:
        before = client.classify("the cat sat good", adapter="moods")
        client.adapters.export("moods@1", tmp_path / "files")
        version = client.adapters.import_directory(
            tmp_path / "files", "copy", expected_base_digest=before.served_by.base_digest
        )
        after = client.classify("the cat sat good", adapter="copy")
    assert version.digest == before.served_by.adapter_digest
    assert after[0] == before[0]


def test_an_imported_head_answers_and_goes_on_whatever_the_order_of_its_labels(
    encoder: TinyServer, tmp_path: Path
) -> None:
    with Client(encoder.endpoint) as client:
        client.adapters.export("moods@1", tmp_path / "files")
        config, weights = (
            tmp_path / "files" / f"adapter_{name}" for name in ("config.json", "model.safetensors")
        )
        described = json.loads(config.read_text())
        described["head"]["labels"].reverse()
        config.write_text(json.dumps(described))
        save_file({name: rows.flip(0).contiguous() for name, rows in load_file(weights).items()}, weights)
        turned = client.adapters.import_directory(tmp_path / "files", "turned")
        # Sorted again, they are the same weights.
        assert turned.digest == client.adapters.version("moods@1").digest
        before, after = (
            client.classify("the cat sat good", adapter=name) for name in ("moods@1", "turned@1")
        )
        assert after[0] == before[0]
        going_on = client.train(
            dataset="moods",
            adapter="turned",
            task=Task.TEXT_CLASSIFICATION,
            continue_from="turned@1",
            validate_only=True,
        )
    assert going_on.train is not None
    assert going_on.train.continue_from.endswith("/turned/versions/1")
    # Nobody has named the method: it is that of the weights.
    assert going_on.train.head == Head(pooling=Pooling.MEAN)


def test_the_confusion_matrices_count_all_that_was_held_out(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        for name in ("moods", "tagged"):
            job = client.jobs.get(client.adapters.version(f"{name}@1").lineage.job)
            assert job.data_report is not None
            held_out = {count.label: count.count for count in job.data_report.eval_labels}
            for matrix in (job.confusion, job.baseline_confusion):
                assert matrix is not None
                assert dict(zip(matrix.labels, map(sum, matrix.rows), strict=True)) == held_out
            evaluations = {
                e.evaluation.subject: e.evaluation for e in client.jobs.events(job.name) if e.evaluation
            }
            assert evaluations["adapter"].confusion == job.confusion
            assert evaluations["baseline"].confusion == job.baseline_confusion


def test_a_version_is_promoted_by_a_figure_of_its_task(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        job = client.train(
            dataset="moods",
            adapter="moods",
            task=Task.TEXT_CLASSIFICATION,
            head=Head(pooling=Pooling.CLS),
            optimization=FAST,
            promote_if=PromoteIf(alias="best", minimum=0.3),
        )
        client.jobs.wait(job.name).check()
        assert client.classify("the cat", adapter="moods@best").served_by.label == "moods@2"


def test_prices_are_learnt_and_answered_in_their_own_unit(encoder: TinyServer, tmp_path: Path) -> None:
    prices = [{"text": row["text"], "score": 300.0 if row["label"] == "up" else 260.0} for row in MOODS]
    rows = write(tmp_path / "prices.jsonl", prices)
    asked: dict[str, Any] = {"dataset": "prices", "adapter": "prices", "task": Task.TEXT_CLASSIFICATION}
    with Client(encoder.endpoint) as client:
        client.datasets.upload(rows, "prices")
        told = client.train(**asked, head=Head(), validate_only=True).train.optimization
        assert (told.learning_rate, told.epochs) == (5e-3, 10.0)
        texts = ["the cat sat on the mat good", "the cat sat on the mat bad"]
        for method in ({"head": Head()}, {"lora": Lora()}):
            options = Optimization(epochs=60, learning_rate=0.02)
            job = client.jobs.wait(client.train(**asked, **method, optimization=options).name)
            job.check()
            (off,) = (found.value for found in job.metrics if found.name == "mean_absolute_error")
            assert 0.0 < off < 20.0
            good, bad = (answer.value or 0.0 for answer in client.classify(texts, adapter="prices"))
            assert 240.0 < bad < bad + 10.0 < good < 320.0


def test_where_no_method_is_named_it_is_lora(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        for dataset, task in (("moods", Task.TEXT_CLASSIFICATION), ("tagged", Task.TOKEN_CLASSIFICATION)):
            spec = client.train(dataset=dataset, adapter="usual", task=task, validate_only=True).train
            assert spec is not None
            assert spec.head is None
            assert spec.lora is not None
            assert (spec.lora.rank, spec.optimization.epochs) == (16, 3.0)


def test_where_the_base_does_not_take_lora_it_is_a_head_and_the_job_says_so(tmp_path: Path) -> None:
    make_vision_base(tmp_path / "data" / "bases" / TINY, "regnet")
    rows = [
        {
            "image": base64.b64encode(png(np.full((16, 16), 80 * (n % 2) + n))).decode(),
            "label": "dl"[n % 2],
        }
        for n in range(20)
    ]
    wanted: dict[str, Any] = {"dataset": "images", "adapter": "mine", "task": Task.IMAGE_CLASSIFICATION}
    with running(tmp_path / "data", run_jobs=False) as server, Client(server.endpoint) as client:
        client.datasets.upload(write(tmp_path / "images.jsonl", rows), "images")
        with pytest.raises(errors.InvalidField, match=r"grouped.*Allowed: METHOD_HEAD"):
            client.train(**wanted, lora=Lora())
        job = client.train(**wanted)
        assert job.train is not None
        assert (job.train.lora, job.train.optimization.epochs) == (None, 30.0)
        [told] = [event.notice.text for event in client.jobs.events(job.name) if event.notice]
    assert told.startswith(
        "METHOD_HEAD trains, since none was named and METHOD_LORA does not train on bases/"
    )
    assert "convolutions are grouped" in told


def test_what_cannot_be_trained_is_refused_before_anything_is_stored(
    encoder: TinyServer, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", [{**row, "label": "up"} for row in MOODS])
    other = write(tmp_path / "other.jsonl", [{**row, "label": "new"} for row in MOODS])
    with Client(encoder.endpoint) as client:
        client.datasets.upload(one, "one")
        client.datasets.upload(other, "other")
        jobs = len(list(client.jobs.list()))
        for options, message in (
            ({"dataset": "one", "task": Task.TEXT_CLASSIFICATION}, "1 different labels; a head tells"),
            ({"dataset": "moods", "task": Task.TOKEN_CLASSIFICATION}, "holds LABELLED_TEXT rows"),
            ({"dataset": "moods", "task": Task.IMAGE_CLASSIFICATION}, "image-classification|LABELLED_IMAGE"),
            (
                {"dataset": "moods", "eval_dataset": "other", "task": Task.TEXT_CLASSIFICATION},
                "eval_dataset.*new",
            ),
        ):
            with pytest.raises((errors.InvalidField, errors.InvalidData), match=message):
                client.train(adapter="mine", **options)
        for classification, message in (
            (
                ClassificationOptions(label_weights={"sideways": 2.0}),
                "names 'sideways'; allowed: the labels 'down'",
            ),
            (ClassificationOptions(label_weights={"up": 0.0}), "greater than 0"),
            (
                ClassificationOptions(class_weights=ClassWeights.BALANCED, label_weights={"up": 2.0}),
                "is set beside CLASS_WEIGHTS_BALANCED",
            ),
        ):
            with pytest.raises(errors.InvalidField, match=message):
                client.train(
                    dataset="moods",
                    adapter="mine",
                    task=Task.TEXT_CLASSIFICATION,
                    classification=classification,
                )
        for method, reason in (
            ({"ia3": Ia3()}, "METHOD_IA3 for TASK_IMAGE_CLASSIFICATION is not available: IA3 scales keys"),
            ({"bottleneck": Bottleneck()}, "maps of channels.*METHOD_LORA, METHOD_HEAD, METHOD_LAYERS"),
        ):
            with pytest.raises(errors.Unimplemented, match=reason):
                client.train(dataset="moods", adapter="mine", task=Task.IMAGE_CLASSIFICATION, **method)
        assert len(list(client.jobs.list())) == jobs


def test_a_head_goes_on_in_its_own_labels_and_no_others(encoder: TinyServer, tmp_path: Path) -> None:
    others = [{**row, "label": {"up": "up", "down": "sideways"}[row["label"]]} for row in MOODS]
    several = [{"text": row["text"], "labels": [row["label"]]} for row in MOODS]
    continued: dict[str, Any] = {"task": Task.TEXT_CLASSIFICATION, "continue_from": "moods@1"}
    with Client(encoder.endpoint) as client:
        client.datasets.upload(write(tmp_path / "others.jsonl", others), "others")
        client.datasets.upload(write(tmp_path / "several.jsonl", several), "several")
        jobs = len(list(client.jobs.list()))
        for options, message in (
            ({"dataset": "others"}, "has the labels 'sideways', 'up'; .*/moods/versions/1 has 'down', 'up'"),
            ({"dataset": "several"}, "want a head for MULTI_LABEL; .* has one for SINGLE_LABEL"),
            ({"head": Head(pooling=Pooling.CLS)}, r"spec\.head\.pooling: is CLS; .* has MEAN"),
            ({"lora": Lora()}, "of method HEAD; this job's is LORA"),
            ({"dataset": "tagged", "task": Task.TOKEN_CLASSIFICATION}, "for the task text-classification"),
        ):
            with pytest.raises(errors.InvalidField, match=message):
                client.train(**{"dataset": "moods", "adapter": "mine", **continued, **options})
        assert len(list(client.jobs.list())) == jobs
        once = Optimization(max_steps=1, batch_rows=8, learning_rate=1e-9)
        job = client.jobs.wait(
            client.train(dataset="moods", adapter="on", optimization=once, **continued).name
        )
        first = client.jobs.get(client.adapters.version("moods@1").lineage.job)
        assert client.adapters.version("on@1").lineage.parent_version.endswith("/moods/versions/1")
    # The same rows are held out, and so small a step changes nothing.
    assert [sample.answer for sample in job.check().samples] == [sample.answer for sample in first.samples]
    for before, after in zip(first.metrics, job.metrics, strict=True):
        assert after.value == pytest.approx(before.value, rel=1e-4)
