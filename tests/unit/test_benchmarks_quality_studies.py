"""What the quality benchmark's rows are made of, and what its references do by themselves where they are tuned."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.jobs.specs import ClassificationOptions, TrainSpec
from finetuned_service.training.embeddings.loss import cosine_loss
from finetuned_service.training.heads.model import summed_loss
from finetuned_service.training.heads.weights import label_weights
from finetuned_service.vocabulary import ClassWeights, Method, Task
from tiny_encoders import make_encoder_base, make_resnet_base, random_image
from torch.nn import functional

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.quality.ours_model import model_of
from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.labels import LABELS, Labelling, balance, classes
from benchmarks.quality.reference.model import load
from benchmarks.quality.reference.texts import Likening, vectors_of
from benchmarks.quality.reference.tuned import with_method
from benchmarks.quality.rows import RowFiles, preferences, read, similarity
from benchmarks.quality.studies import METHODS, STUDIES, default_spec

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = [
    {"prompt": "Call Ann at 555-0102.", "completion": "Call [NAME] at [PHONE]."},
    {"prompt": "Nobody is named here.", "completion": "Nobody is named here."},
]


def test_pairs_of_requests_are_as_alike_as_their_commands() -> None:
    rows = read(ROOT / "examples/ops_cli/train.jsonl")
    found, commands = similarity(rows), {row["prompt"]: set(row["completion"].split()[1:]) for row in rows}
    assert [row["sentence1"] for row in found] == [row["prompt"] for row in rows]
    for row in found:
        first, second = commands[row["sentence1"]], commands[row["sentence2"]]
        assert row["sentence1"] != row["sentence2"]
        assert row["score"] == len(first & second) / len(first | second)
    scores = sorted(row["score"] for row in found)
    assert scores[len(scores) // 4] == 0.0
    assert 0.2 <= scores[len(scores) * 3 // 4] < 1


def test_what_is_rejected_has_one_mistake() -> None:
    made = preferences(PEOPLE * 20)
    assert len(made) == 20
    assert {row["chosen"] for row in made} == {"Call [NAME] at [PHONE]."}
    assert {row["rejected"] for row in made} == {
        *("Call Ann at [PHONE].", "Call [NAME] at 555-0102."),
        *("Call [PHONE] at [PHONE].", "Call [EMAIL] at [PHONE]."),
        *("Call [NAME] at [NAME].", "Call [NAME] at [EMAIL]."),
    }


def test_the_reference_likens_as_ours_does(tmp_path: Path) -> None:
    model = load(make_encoder_base(tmp_path / "base"), "feature-extraction")
    rows: list[Row] = [
        {"first": [1, 5, 2], "second": [1, 7, 9, 2], "score": 0.5},
        {"first": [1, 8, 8, 8, 2], "second": [1, 3, 2], "score": -0.25},
    ]
    sides = [vectors_of(model, [row[side] for row in rows]) for side in ("first", "second")]
    expected = cosine_loss(*sides, torch.tensor([0.5, -0.25])) / 2
    torch.testing.assert_close(Likening(model).loss(rows), expected)
    cosines = functional.cosine_similarity(*sides)
    assert Likening(model).predictions(rows)["numbers"] == pytest.approx(cosines.tolist())


def test_the_reference_balances_several_labels_as_ours_does() -> None:
    rows: list[Row] = [{LABELS: ["a", "c"]}, {LABELS: []}, {LABELS: ["b", "c"]}, {LABELS: ["c"]}]
    labels = classes(rows)
    vectors = torch.randn(4, 3, generator=torch.manual_seed(0))
    labelling = Labelling(None, torch.nn.Linear(3, 3), LABELS, labels, weights=balance(rows, labels))
    targets = labelling.targets(rows)
    weights = label_weights(
        ClassificationOptions(class_weights=ClassWeights.BALANCED),
        Head(task=Task.TEXT_CLASSIFICATION, problem=Problem.MULTI_LABEL, labels=labels),
        targets.tolist(),
    )
    assert weights == pytest.approx((3.0, 3.0, 1 / 3))
    given = [{**row, "vectors": vector[None]} for row, vector in zip(rows, vectors, strict=True)]
    outputs = labelling.head(vectors)
    ours = summed_loss(outputs, targets, Problem.MULTI_LABEL, torch.tensor(weights)) / len(rows)
    torch.testing.assert_close(labelling.loss(given), ours)
    assert (labelling.loss(given) - summed_loss(outputs, targets, Problem.MULTI_LABEL) / 4).abs() > 0.01


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("encoder") / "base")


def files_of(directory: Path, **told: str) -> RowFiles:
    files = RowFiles(directory / "train.jsonl", directory / "test.jsonl")
    rows = ({**told, "label": label} for label in ("up", "down"))
    files.train.write_text("".join(json.dumps(row) + "\n" for row in rows) * 50)
    return files


def names_of_ours(spec: TrainSpec, base: Path, files: RowFiles) -> set[str]:
    """Of what our job trains, without its head."""
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"holdout_fraction": 0.0})})
    named = model_of(spec, base, files.train).named_parameters()
    return {name for name, _ in named if not name.startswith("classifier.")}


@pytest.mark.parametrize("method", [name for name in STUDIES["intents"].tuned if name != "head"])
def test_a_tuned_reference_begins_as_the_base_and_trains_what_ours_does(
    encoder: Path, tmp_path: Path, method: str
) -> None:
    files = files_of(tmp_path, text="the cat sat")
    spec = default_spec(STUDIES["intents"], method, 1, encoder, files)
    assert spec.method is Method(METHODS[method]["method"])
    told: dict[str, Any] = spec.model_dump(mode="json")
    ids = torch.tensor([[1, 5, 7, 2]])
    plain = load(encoder, told["task"])
    model, trained = with_method(load(encoder, told["task"]), told)
    assert {id(p) for p in trained.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert trained.keys() == names_of_ours(spec, encoder, files)
    apart = model(input_ids=ids).last_hidden_state - plain(input_ids=ids).last_hidden_state
    # A bottleneck of the paper begins near identity; all others at it.
    assert apart.abs().max() < (1e-2 if spec.method is Method.BOTTLENECK else 1e-6)


@pytest.mark.parametrize("method", [name for name in STUDIES["digits"].tuned if name != "head"])
def test_a_tuned_reference_of_images_trains_what_ours_does(tmp_path: Path, method: str) -> None:
    base = make_resnet_base(tmp_path / "base")
    files = files_of(tmp_path, image=base64.b64encode(random_image(1)).decode())
    spec = default_spec(STUDIES["digits"], method, 1, base, files)
    model, trained = with_method(load(base, "image-classification"), spec.model_dump(mode="json"))
    assert {id(p) for p in trained.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert trained.keys() == names_of_ours(spec, base, files)
