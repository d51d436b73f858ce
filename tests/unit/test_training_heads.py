"""Training of heads: what they learn equals scikit-learn on transformers' own features; rows that cannot be used."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import BaseGeometry, check_adapter, spell_out_config, stored_digest
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.adapters.label_order import has_sorted_labels, sort_labels
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import InvalidAdapterFiles, InvalidData, InvalidField
from finetuned_service.jobs.continuing import Start, refuse_other_head
from finetuned_service.jobs.events import Checkpoint, EvaluationFinished, Notice, Progress
from finetuned_service.jobs.pace import Stopped
from finetuned_service.jobs.specs import ClassificationOptions
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, TrainFinished
from finetuned_service.training.adapter import adapter_handle
from finetuned_service.training.heads.evaluate import answered, scored, why_incomparable
from finetuned_service.training.heads.examples import Example, read_head_data
from finetuned_service.training.heads.model import summed_loss
from finetuned_service.training.heads.weights import label_weights
from finetuned_service.training.run import run
from finetuned_service.vocabulary import DataReport, LabelCount, Method, Task
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.utils.class_weight import compute_class_weight
from tiny_encoders import make_encoder_base, make_resnet_base, png, word_pieces
from tokenizers import Tokenizer
from training_tasks import Reports, SetAfter, StopAfter, make_task
from transformers import AutoModel

GOOD = [
    f"the {animal} sat on the {place}"
    for animal in ("cat", "dog", "bird")
    for place in ("mat", "tree", "house")
]
MOODS = [
    {"text": f"{text} {word}", "label": label}
    for text in GOOD
    for word, label in (("good", "up"), ("bad", "down"), ("happy", "up"), ("awful", "down"))
]
HEAD = {"method": "HEAD", "optimization": {"max_steps": 150, "batch_rows": 8, "learning_rate": 0.02}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_resnet_base(tmp_path_factory.mktemp("bases") / "tiny")


def train(directory: Path, base: Path, rows: list[dict[str, Any]], **spec: Any) -> tuple[Any, Path, Reports]:
    task = make_task(directory, base, train=rows, **{**HEAD, **spec})
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    return reports.of(TrainFinished)[0], Path(task.output_directory), reports


def figures(metrics: Any) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


def check(directory: Path, base: Path) -> Any:
    return check_adapter(directory, BaseGeometry.of_directory(base), 64)


def test_a_classifier_learns_what_scikit_learn_learns_from_the_same_features(
    encoder: Path, tmp_path: Path
) -> None:
    # Measured on the rows that scikit-learn is fitted to: a tenth of 36 would be a matter of luck.
    finished, directory, reports = train(
        tmp_path, encoder, MOODS, heldout=MOODS, task="text-classification", evaluation={"evaluations": 8}
    )
    facts = check(directory, encoder)
    assert (facts.method, facts.task, facts.modules) == (Method.HEAD, Task.TEXT_CLASSIFICATION, 1)
    assert facts.head == Head(
        task=Task.TEXT_CLASSIFICATION, problem=Problem.SINGLE_LABEL, labels=("down", "up"), pooling="MEAN"
    )
    model: Any = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        features = np.stack(
            [
                model(input_ids=torch.tensor([word_pieces().encode(row["text"]).ids]))
                .last_hidden_state[0]
                .mean(0)
                .numpy()
                for row in MOODS
            ]
        )
    labels = np.array([row["label"] for row in MOODS])
    by_sklearn = LogisticRegression(max_iter=1000).fit(features, labels).score(features, labels)
    tensors = load_file(directory / "adapter_model.safetensors")
    weight, bias = (tensors[f"base_model.model.classifier.{name}"].numpy() for name in ("weight", "bias"))
    ours = np.array(["down", "up"])[(features @ weight.T + bias).argmax(1)]
    assert (ours == labels).mean() >= by_sklearn - 0.03
    assert figures(finished.metrics)["accuracy"] == pytest.approx((ours == labels).mean())
    assert finished.confusion.labels == ("down", "up")
    assert finished.confusion.counts == tuple(confusion_matrix(labels, ours, labels=["down", "up"]).ravel())
    baseline = figures(finished.baseline_metrics)
    assert baseline["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert {"accuracy", "macro_f1", "loss"} == set(baseline)
    sample = finished.samples[0]
    assert sample.correct == (sample.answer == sample.expected)
    report = reports.of(Prepared)[0].data_report
    assert (report.train_rows, report.eval_rows, report.leaked_rows) == (36, 36, 36)
    assert [(count.label, count.count) for count in report.train_labels] == [("down", 18), ("up", 18)]
    assert report.row_tokens.longest == report.longest_row_tokens


def test_samples_show_the_beginning_of_long_texts(encoder: Path, tmp_path: Path) -> None:
    """100 samples of 700 kB made a last report that was too long a line, and the finished job was taken for a lost one."""
    long = [{**row, "text": row["text"] + " cat" * 1000} for row in MOODS]
    finished, _, _ = train(
        tmp_path,
        encoder,
        long,
        heldout=long,
        task="text-classification",
        data={"long_rows": "TRUNCATE", "max_row_tokens": 16},
        optimization={"max_steps": 2},
    )
    shown = [sample.prompt for sample in finished.samples]
    assert shown == [f"{row['text'][:1999]}…" for row in long]


def test_several_labels_and_numbers(encoder: Path, tmp_path: Path) -> None:
    several = [
        {"text": row["text"], "labels": sorted({row["label"], "cat" if "cat" in row["text"] else "other"})}
        for row in MOODS
    ]
    finished, directory, _ = train(tmp_path / "several", encoder, several, task="text-classification")
    assert check(directory, encoder).head.labels == ("cat", "down", "other", "up")
    found, baseline = figures(finished.metrics), figures(finished.baseline_metrics)
    assert found["micro_f1"] > baseline["micro_f1"]
    assert finished.confusion is None
    assert found["loss"] < baseline["loss"]
    # Far from zero: no head comes there in so few steps that does not begin there.
    numbers = [{"text": row["text"], "score": 103.0 if row["label"] == "up" else 98.5} for row in MOODS]
    finished, directory, _ = train(
        tmp_path / "numbers", encoder, numbers, heldout=numbers, task="text-classification"
    )
    assert check(directory, encoder).head.problem is Problem.REGRESSION
    assert figures(finished.metrics)["pearson"] > 0.5
    assert figures(finished.metrics)["loss"] < figures(finished.baseline_metrics)["loss"]


def test_pairs_of_texts(encoder: Path, tmp_path: Path) -> None:
    # Which of the two says "good": no pooled bag of words tells, only who comes first.
    said = [(first, second) for first in GOOD for second in GOOD if first != second]
    rows = [
        {"text": f"{a} {mood}", "text_pair": f"{b} {other}", "label": label}
        for a, b in said[:40]
        for mood, other, label in (("good", "bad", "first"), ("bad", "good", "second"))
    ]
    finished, _, _ = train(tmp_path, encoder, rows, heldout=rows, task="text-classification")
    assert figures(finished.metrics)["accuracy"] > 0.9


def test_rare_labels_count_more(encoder: Path, tmp_path: Path) -> None:
    # What "bad" is, is a matter of luck here: in 6 of 36 rows it is down, and nothing else tells.
    rows = [
        {"text": f"{text} {word}", "label": "down" if word == "bad" and number % 3 == 0 else "up"}
        for number, text in enumerate(GOOD)
        for word in ("good", "bad", "fine", "happy")
    ]
    balanced, _, reports = train(tmp_path / "a", encoder, rows, heldout=rows, task="text-classification")
    alike, _, other = train(
        tmp_path / "b",
        encoder,
        rows,
        heldout=rows,
        task="text-classification",
        classification={"class_weights": "NONE"},
    )
    assert "'down' 6, 'up' 0.545 (spec.classification)" in reports.of(Notice)[0].text
    assert not other.of(Notice) or "spec.classification" not in other.of(Notice)[0].text
    assert figures(balanced.metrics)["macro_f1"] > figures(alike.metrics)["macro_f1"]


def test_weights_are_those_of_scikit_learn_and_torch() -> None:
    balanced = ClassificationOptions(class_weights="BALANCED")
    single = Head(task=Task.TEXT_CLASSIFICATION, problem=Problem.SINGLE_LABEL, labels=("a", "b", "c"))
    targets = [(0.0,)] * 7 + [(1.0,)] * 2 + [(2.0,)]
    flat = np.array([target for row in targets for target in row])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=flat)
    assert label_weights(balanced, single, targets) == pytest.approx(expected)
    several = single.model_copy(update={"problem": Problem.MULTI_LABEL})
    flags = [(1.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)]
    assert label_weights(balanced, several, flags) == pytest.approx((1 / 3, 3.0, 1.0))
    assert label_weights(balanced, single, [(0.0,)] * 1000 + [(1.0,), (2.0,)])[1] == 100
    own = ClassificationOptions(class_weights="NONE", label_weights={"b": 2.5})
    assert label_weights(own, single, targets) == (1.0, 2.5, 1.0)
    assert label_weights(ClassificationOptions(class_weights="NONE"), single, targets) is None
    assert label_weights(balanced, single, [(0.0,), (1.0,), (2.0,)]) is None
    with pytest.raises(InvalidField, match=r"names 'z'; allowed: the labels 'a', 'b', 'c'"):
        label_weights(ClassificationOptions(label_weights={"z": 2.0}), single, targets)


@pytest.mark.parametrize("problem", [Problem.SINGLE_LABEL, Problem.MULTI_LABEL])
def test_the_weighted_loss_and_its_gradient_are_torch_s(problem: Problem) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    if problem is Problem.SINGLE_LABEL:
        targets = torch.tensor([0, 1, 2, 1, 0, 0])
        expected = torch.nn.CrossEntropyLoss(weight=weights)(outputs, targets) * weights[targets].sum()
    else:
        targets = (torch.rand(6, 3, dtype=torch.float64) > 0.5).double()
        expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(outputs, targets) * 6
    (wanted,) = torch.autograd.grad(expected, outputs)
    loss = summed_loss(outputs, targets, problem, weights)
    (found,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_tags_of_tokens(encoder: Path, tmp_path: Path) -> None:
    tag = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "birds": "B-ANIMAL", "tree": "B-PLACE", "house": "B-PLACE"}
    sentences = [
        f"{first} {animal} {verb} {where} the {place}".split()
        for first in ("the", "a")
        for animal in ("cat", "dog", "birds")
        for verb in ("sat", "ran")
        for where in ("on", "under")
        for place in ("tree", "house")
    ]
    rows = [{"tokens": words, "tags": [tag.get(word, "O") for word in words]} for words in sentences]
    finished, directory, reports = train(tmp_path, encoder, rows, task="token-classification")
    head = check(directory, encoder).head
    assert (head.labels, head.pooling) == (("B-ANIMAL", "B-PLACE", "O"), None)
    assert figures(finished.metrics)["entity_f1"] > 0.6
    assert figures(finished.baseline_metrics)["entity_f1"] == 0.0
    told = {event.subject: event.confusion for event in reports.of(EvaluationFinished) if event.confusion}
    assert told["adapter"] == finished.confusion
    held_out = {count.label: count.count for count in reports.of(Prepared)[0].data_report.eval_labels}
    for matrix in told.values():
        assert matrix.labels == head.labels
        counts = np.array(matrix.counts).reshape(3, 3)
        # A word has one tag, however many pieces it has.
        assert dict(zip(head.labels, counts.sum(1).tolist(), strict=True)) == held_out
    assert set(np.flatnonzero(np.array(told["baseline"].counts).reshape(3, 3).sum(0))) == {2}


def test_names_of_tags_may_have_spaces() -> None:
    head = Head(
        task=Task.TOKEN_CLASSIFICATION,
        problem=Problem.SINGLE_LABEL,
        labels=("B-First Name", "I-First Name", "O"),
        pooling=None,
    )
    examples = [Example(0, (1, 2, 3), (0.0, 1.0, 2.0), (0, 1, 2))]
    found = scored([np.eye(3, dtype=np.float32)], examples, head)
    assert (figures(found.metrics)["entity_f1"], figures(found.metrics)["accuracy"]) == (1.0, 1.0)
    assert found.answers == ("B-First Name I-First Name O",)


def image_rows(kinds: tuple[str, ...] = ("dark", "light")) -> list[dict[str, str]]:
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        label = kinds[number % len(kinds)]
        values = random.integers(0, 120, (16, 16)) + (130 if label == "light" else 0)
        rows.append({"image": base64.b64encode(png(values)).decode(), "label": label})
    return rows


def test_images(vision: Path, tmp_path: Path) -> None:
    finished, directory, _ = train(tmp_path, vision, image_rows(), task="image-classification")
    assert check(directory, vision).head.labels == ("dark", "light")
    assert figures(finished.metrics)["accuracy"] == 1.0
    assert finished.confusion.counts == (2, 0, 0, 2)


@pytest.mark.parametrize(
    "method",
    [
        {"lora": {"rank": 2}},
        {"lora": {"rank": 2, "decomposed": True}},
        {"method": "LAYERS", "layers": {"last": 1}},
        {"method": "FULL"},
    ],
    ids=["lora", "dora", "layers", "full"],
)
def test_methods_over_images_of_a_base_in_bfloat16(tmp_path: Path, method: dict[str, Any]) -> None:
    base = make_resnet_base(tmp_path / "base", dtype=torch.bfloat16)
    finished, directory, _ = train(
        tmp_path / "job", base, image_rows(), task="image-classification", **method
    )
    assert figures(finished.metrics)["accuracy"] >= figures(finished.baseline_metrics)["accuracy"]
    check(directory, base)


def test_an_incumbent_with_its_labels_in_another_order_and_another_pooling_is_compared(
    encoder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"heldout": MOODS, "task": "text-classification"}
    first, directory, _ = train(tmp_path / "first", encoder, MOODS, head={"pooling": "CLS"}, **settings)
    turned = tmp_path / "turned"
    config = json.loads((directory / "adapter_config.json").read_text())
    config["head"]["labels"].reverse()
    turned.mkdir()
    (turned / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file(
        {name: rows.flip(0).contiguous() for name, rows in tensors.items()},
        turned / "adapter_model.safetensors",
    )
    wanted = {**HEAD, **settings, "promote_if": {"alias": "best", "metric": "accuracy"}}
    task = make_task(tmp_path / "second", encoder, train=MOODS, incumbent=turned, **wanted)
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (compared,) = reports.of(TrainFinished)
    # Another order of the labels sums a softmax in another order.
    assert figures(compared.incumbent_metrics) == pytest.approx(figures(first.metrics), rel=1e-6)
    others = [{**row, "label": {"up": "up", "down": "sideways"}[row["label"]]} for row in MOODS]
    wanted["heldout"] = others
    task = make_task(tmp_path / "third", encoder, train=others, incumbent=turned, **wanted)
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert reports.of(TrainFinished)[0].incumbent_metrics == ()
    (told,) = [notice.text for notice in reports.of(Notice) if "incumbent" in notice.text]
    assert told == (
        "the incumbent has labels that the rows have not: 'down'; it lacks labels of the rows: 'sideways', so its "
        "figures cannot be compared with the new version's"
    )


def test_why_heads_cannot_be_compared() -> None:
    texts: dict[str, Any] = {"task": Task.TEXT_CLASSIFICATION, "labels": ("a", "b"), "pooling": "MEAN"}
    one = Head(problem=Problem.SINGLE_LABEL, **texts)
    assert why_incomparable(None, one) == "has no head"
    tags = Head(task=Task.TOKEN_CLASSIFICATION, problem=Problem.SINGLE_LABEL, labels=("a", "b"))
    assert why_incomparable(tags, one) == "is for token-classification, the rows are for text-classification"
    several = Head(problem=Problem.MULTI_LABEL, **texts)
    assert why_incomparable(several, one) == "has a head for MULTI_LABEL, the rows want one for SINGLE_LABEL"
    assert why_incomparable(one.model_copy(update={"labels": ("b", "a"), "pooling": "CLS"}), one) == ""


@pytest.mark.parametrize("method", ["LORA", "FULL"])
def test_a_run_on_images_that_was_stopped_goes_on_to_the_same_weights(
    vision: Path, tmp_path: Path, method: str
) -> None:
    settings: dict[str, Any] = {"method": method, "task": "image-classification", "lora": {"dropout": 0.2}}
    settings["optimization"] = {"max_steps": 14, "batch_rows": 8, "learning_rate": 0.005}
    finished, whole, _ = train(tmp_path / "whole", vision, image_rows(), **settings)
    assert figures(finished.metrics)["accuracy"] == 1.0
    assert check(whole, vision).method is Method(method)
    task = make_task(tmp_path / "parts", vision, train=image_rows(), **settings)
    stop = StopAfter(9)
    assert run(task, stop, stop) == EXIT_STOPPED
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    assert stored_digest(whole) == stored_digest(Path(task.output_directory))


@pytest.mark.parametrize("method", ["HEAD", "BOTTLENECK", "LAYERS", "FULL"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    encoder: Path, tmp_path: Path, method: str
) -> None:
    settings = {**HEAD, "method": method, "task": "text-classification"}
    settings["optimization"] = {"max_steps": 60, "batch_rows": 8, "learning_rate": 0.002}
    _, whole, _ = train(tmp_path / "whole", encoder, MOODS, **settings)
    task = make_task(tmp_path / "parts", encoder, train=MOODS, **settings)
    stop = StopAfter(37)
    assert run(task, stop, stop) == EXIT_STOPPED
    again = Reports()
    assert run(task, again, threading.Event()) == EXIT_FINISHED
    assert again.of(Notice)[0].text == "goes on from the checkpoint after step 37"
    assert stored_digest(whole) == stored_digest(Path(task.output_directory))


def stopped_in(phase: str, questions: int = 0) -> Any:
    """Reports and stop flag in one: set at the nth question after the phase began."""

    class Stop(Reports):
        left = questions

        def is_set(self) -> bool:
            begun = any(progress.phase == phase for progress in self.of(Progress))
            self.left -= begun
            return begun and self.left < 0

    return Stop()


@pytest.mark.parametrize(("phase", "questions"), [("preparing", 5), ("encoding", 1), ("evaluating", 0)])
def test_a_run_that_is_stopped_before_or_after_its_steps_ends_by_itself_and_goes_on_to_the_same_weights(
    encoder: Path, tmp_path: Path, phase: str, questions: int
) -> None:
    rows = MOODS * 3
    settings = {**HEAD, "task": "text-classification"}
    _, whole, reports = train(tmp_path / "whole", encoder, rows, **settings)
    told = [progress for progress in reports.of(Progress) if progress.phase == "encoding"]
    assert [(progress.step, progress.total_steps) for progress in (told[0], told[-1])] == [
        (0, 108),
        (108, 108),
    ]
    task = make_task(tmp_path / "parts", encoder, train=rows, **settings)
    stop = stopped_in(phase, questions)
    assert run(task, stop, stop) == EXIT_STOPPED
    assert not stop.of(TrainFinished)
    assert bool(stop.of(Checkpoint)) is (phase == "evaluating")
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    assert stored_digest(whole) == stored_digest(Path(task.output_directory))


@pytest.mark.parametrize("long_rows", ["REJECT", "TRUNCATE", "DROP"])
def test_a_token_without_an_embedding_is_a_fault_of_its_line(
    encoder: Path, tmp_path: Path, long_rows: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(encoder, base)
    added = Tokenizer.from_file(str(base / "tokenizer.json"))
    added.add_special_tokens(["[MORE]"])
    added.save(str(base / "tokenizer.json"))
    rows = [*MOODS, {"text": "the [MORE] cat", "label": MOODS[0]["label"]}]
    rest = {"task": "text-classification", "data": {"long_rows": long_rows}}
    task = make_task(tmp_path / "task", encoder, train=rows, **HEAD, **rest)
    with pytest.raises(InvalidData, match=rf"line {len(rows)} text: has the token '\[MORE\]'"):
        read_head_data(task.spec, base, Path(task.train_path), None)


def test_looking_for_rows_that_do_not_fit_ends_when_asked(encoder: Path, tmp_path: Path) -> None:
    dropping = {"task": "text-classification", "data": {"long_rows": "DROP"}}
    task = make_task(tmp_path, encoder, train=MOODS, **HEAD, **dropping)
    stop = SetAfter(len(MOODS) - 1)
    with pytest.raises(Stopped):
        read_head_data(task.spec, encoder, Path(task.train_path), None, stop=stop)
    assert stop.questions == -1


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        (
            [{"text": "the cat", "label": "a"}, {"text": "a dog", "label": "a"}],
            {},
            "1 different labels; a head",
        ),
        (
            [{"text": "the cat " * 30, "label": "a"}, {"text": "a dog", "label": "b"}],
            {},
            "line 1 has 62 tokens; max_row_tokens allows 40",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on(
    encoder: Path, tmp_path: Path, rows: list[dict[str, str]], spec: dict[str, Any], message: str
) -> None:
    task = make_task(
        tmp_path, encoder, train=rows, heldout=rows, task="text-classification", method="HEAD", **spec
    )
    with pytest.raises(InvalidData, match=message):
        run(task, Reports(), threading.Event())


def test_rows_are_named_as_they_stand_in_the_file(encoder: Path, tmp_path: Path) -> None:
    # Some of both are held out.
    long = [{"text": f"{row['text']} {'cat ' * 50}", "label": row["label"]} for row in MOODS[:9]]
    rows = [row for pair in zip(MOODS[9:18], long, strict=True) for row in pair]
    settings: dict[str, Any] = {"task": "text-classification", "method": "HEAD"}
    task = make_task(tmp_path, encoder, train=rows, data={"holdout_fraction": 0.4}, **settings)
    with pytest.raises(InvalidData, match="9 rows cannot be used") as refused:
        run(task, Reports(), threading.Event())
    named = sorted(violation.field for violation in refused.value.violations)
    assert named == sorted(f"line {number}" for number in range(2, 19, 2))
    apart = make_task(tmp_path / "apart", encoder, train=MOODS, heldout=rows, **settings)
    with pytest.raises(InvalidData, match=r"9 rows .* eval_dataset line 2 has \d+ tokens"):
        run(apart, Reports(), threading.Event())


def written(directory: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Path:
    directory.mkdir()
    named = {f"base_model.model.classifier.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def described(**changes: Any) -> dict[str, Any]:
    head = {"task": "text-classification", "problem": "SINGLE_LABEL", "labels": ["a", "b"], "pooling": "CLS"}
    return {"peft_type": "HEAD", "head": {**head, **changes}}


WEIGHT, BIAS = torch.ones(2, 32), torch.zeros(2)


def test_a_head_is_stored_spelled_out_and_keeps_its_digest(encoder: Path, tmp_path: Path) -> None:
    config = {**described(), "base_model_name_or_path": "/home/somebody"}
    directory = written(tmp_path / "head", config, weight=WEIGHT, bias=BIAS)
    digest = check(directory, encoder).digest
    spell_out_config(directory)
    assert "somebody" not in (directory / "adapter_config.json").read_text()
    assert check(directory, encoder).digest == stored_digest(directory) == digest
    other = written(tmp_path / "other", described(labels=["b", "a"]), weight=WEIGHT, bias=BIAS)
    assert check(other, encoder).digest != digest


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_head_says_of_each_label_what_it_said_before_its_labels_were_sorted(
    encoder: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    labels, tokens = ("zebra", "ant", "cat"), (2, 7, 9, 3)
    generator = torch.Generator().manual_seed(5)
    weight, bias = (
        torch.randn(3, 32, generator=generator).to(dtype),
        torch.randn(3, generator=generator).to(dtype),
    )
    directory = written(tmp_path / "head", described(labels=list(labels)), weight=weight, bias=bias)
    model: Any = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        first = model(input_ids=torch.tensor([tokens])).last_hidden_state[0, 0]
        said = dict(zip(labels, (first @ weight.float().T + bias.float()).tolist(), strict=True))
    facts = check(directory, encoder)
    assert not has_sorted_labels(facts)
    sort_labels(directory, facts)
    facts = check(directory, encoder)
    assert has_sorted_labels(facts)
    assert facts.head.labels == ("ant", "cat", "zebra")
    (found,) = answered(
        encoder, adapter_handle(directory, encoder), [Example(0, tokens, (0.0,))], facts.head, 1
    )
    np.testing.assert_allclose(
        found[0], [said[label] for label in facts.head.labels], rtol=tolerance, atol=tolerance
    )
    tensors = load_file(directory / "adapter_model.safetensors")
    for name, tensor in (("weight", weight), ("bias", bias)):
        assert torch.equal(tensors[f"base_model.model.classifier.{name}"], tensor[[1, 2, 0]])


def test_a_head_that_was_stored_unsorted_says_how_to_go_on_from_it(encoder: Path, tmp_path: Path) -> None:
    directory = written(tmp_path / "head", described(labels=["b", "a"]), weight=WEIGHT, bias=BIAS)
    start = Start(
        "tenants/t/adapters/old/versions/1", directory, "sha256:0", Method.HEAD, Task.TEXT_CLASSIFICATION
    )
    counted = tuple(LabelCount(label=label, count=1) for label in ("a", "b"))
    report = DataReport(
        train_rows=2,
        eval_rows=0,
        train_tokens=2,
        supervised_tokens=2,
        mean_row_tokens=1.0,
        longest_row_tokens=1,
        train_labels=counted,
    )
    with pytest.raises(
        InvalidField, match=r"in another order .* Export it and import it again, which sorts them"
    ):
        refuse_other_head(start, RowKind.LABELLED_TEXT, report)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (
            described(labels=["a"]),
            {"weight": WEIGHT, "bias": BIAS},
            r"has shape \[2, 32\]; expected \[1, 32\]",
        ),
        (described(), {"weight": WEIGHT}, r"classifier.bias is missing; expected shape \[2\]"),
        (described(labels=["a", "a"]), {"weight": WEIGHT, "bias": BIAS}, "labels has a label twice"),
        (described(problem="REGRESSION"), {"weight": WEIGHT, "bias": BIAS}, "REGRESSION with 2 labels"),
        (described(), {"weight": WEIGHT * torch.nan, "bias": BIAS}, "holds NaN"),
        ({"peft_type": "HEAD"}, {"weight": WEIGHT, "bias": BIAS}, "head is missing"),
        (described(), {"weight": WEIGHT, "bias": BIAS, "more": WEIGHT + 1}, "does not belong to a head"),
    ],
)
def test_heads_that_cannot_be_served(
    encoder: Path, tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InvalidAdapterFiles, match=message):
        check(written(tmp_path / "head", config, **tensors), encoder)
