"""Scores, medians, ratios and verdicts of the quality benchmark, and settings that every study resolves to. Nothing trains."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetuned_service.adapters.head import Problem
from finetuned_service.names import BaseName
from finetuned_service.training.heads.model import summed_loss
from finetuned_service.training.heads.unit import Unit
from finetuned_service.vocabulary import Task
from safetensors.torch import load_file, save_file
from tiny_encoders import make_encoder_base, make_resnet_base
from training_tasks import make_base

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.quality import groups, report
from benchmarks.quality.bases import BASES
from benchmarks.quality.compare import (
    Comparison,
    against_noise,
    against_tuned,
    best,
    better,
    compared,
    curve_distance,
    lora_beside_full,
)
from benchmarks.quality.encoded import encoded_file
from benchmarks.quality.groups import GROUPS
from benchmarks.quality.learners import Learners
from benchmarks.quality.nudge import WAYS, nudge
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.reference.batches import IGNORED
from benchmarks.quality.reference.labels import Labelling, classes, told_by
from benchmarks.quality.reviews import reviews
from benchmarks.quality.rows import RowFiles, read, rows_of, tagged
from benchmarks.quality.scores import score
from benchmarks.quality.sources import READ, sources_digest
from benchmarks.quality.studies import METHODS, STUDIES, default_spec, matched_spec, steps_of

ROOT = Path(__file__).resolve().parents[2]


def outcome(**changed: Any) -> Outcome:
    usual: dict[str, Any] = {
        "losses": [2.0, 1.0],
        "seconds": 3.0,
        "parameters": 10,
        "adapter_bytes": 4000,
        "predictions": {},
        "peak_bytes": 5_000_000,
    }
    return Outcome(**usual | changed)


def comparison(
    ours: list[float], reference: list[float], metric: str = "accuracy", **more: Any
) -> Comparison:
    sides = [[(outcome(seconds=float(seed)), s) for seed, s in enumerate(side)] for side in (ours, reference)]
    name = more.pop("method", "lora")
    return compared(f"x_{name}", "x", name, metric, 100, sides[0], "peft", sides[1], **more)


def test_medians_over_seeds_and_ratios_within_a_seed() -> None:
    found = comparison([0.9, 0.5, 0.8], [0.8, 1.0, 0.8])
    assert (found.ours.score, found.reference.score, found.seeds) == (0.8, 0.8, 3)
    assert (found.ratio, found.ratio_minimum, found.ratio_maximum) == (1.0, 0.5, 1.125)
    assert (found.ours.seconds, found.ours.peak_mb, found.ours.parameters) == (1.0, 5.0, 10)


def test_of_losses_the_ratio_is_the_other_way_round() -> None:
    assert comparison([2.0], [3.0], "loss").ratio == 1.5
    assert (better(0.0, 0.0), better(1.0, 0.0), better(0.0, 1.0)) == (1.0, float("inf"), 0.0)


@pytest.mark.parametrize(
    ("metric", "ours", "reference", "more", "expected"),
    [
        ("accuracy", [0.80, 0.80, 0.80], [0.81, 0.81, 0.81], {}, "met"),  # one row of a hundred
        ("accuracy", [0.79, 0.79, 0.79], [0.81, 0.81, 0.81], {}, "missed"),
        ("accuracy", [0.79, 0.79, 0.79], [0.78, 0.81, 0.82], {}, "met"),  # the seeds' own spread
        ("loss", [1.02], [1.0], {}, "missed"),
        ("loss", [1.005], [1.0], {}, "met"),
        ("loss", [0.5], [1.0], {}, "met"),
        ("loss", [1.0], [1.0], {"curve_distance": 0.03, "first_loss": 2.0}, "missed"),
        ("loss", [1.0], [1.0], {"curve_distance": 0.01, "first_loss": 2.0}, "met"),
        (
            "loss",
            [1.0],
            [1.0],
            {"curve_distance": 0.5, "first_loss": 2.0, "reference_curve_distance": 0.6},
            "met",
        ),
        (
            "loss",
            [1.0],
            [1.0],
            {"curve_distance": 0.7, "first_loss": 2.0, "reference_curve_distance": 0.6},
            "missed",
        ),
    ],
)
def test_within_noise(
    metric: str, ours: list[float], reference: list[float], more: dict[str, float], expected: str
) -> None:
    assert against_noise(comparison(ours, reference, metric, **more), exact=True).verdict == expected


def test_curves_in_bfloat16_are_told_and_not_judged() -> None:
    found = comparison([0.9], [0.9], curve_distance=1.0, first_loss=2.0)
    assert against_noise(found, exact=False).verdict == "met"
    assert against_noise(found, exact=True).target == (
        "within noise, curve ≤ 1% of the first loss, or as the reference from itself begun a bit apart"
    )


def test_defaults_reach_their_share_of_the_tuned_reference() -> None:
    assert against_tuned(comparison([0.98], [1.0])).verdict == "met"
    assert against_tuned(comparison([0.97], [1.0])).verdict == "missed"
    assert against_tuned(comparison([1.03], [1.0], "loss")).verdict == "missed"
    assert best({"a": 0.5, "b": 0.7, "c": 0.7}, "accuracy") == "b"
    assert best({"a": 0.5, "b": 0.7}, "loss") == "a"


def test_curves_are_compared_step_by_step() -> None:
    ours = [outcome(losses=[2.0, 1.0]), outcome(losses=[2.0, 1.5])]
    reference = [outcome(losses=[2.0, 1.25]), outcome(losses=[2.0, 1.5])]
    assert curve_distance(ours, reference) == 0.25
    with pytest.raises(ValueError, match="longer"):
        curve_distance([outcome(losses=[1.0])], [outcome()])


def test_a_nudge_moves_each_number_to_the_next_and_leaves_zeros() -> None:
    numbers = torch.tensor([[1.0, -1.0, 0.5], [0.0, 3e-8, 1.0]])
    moved = [nudge(numbers, way) for way in range(WAYS)]
    for found in moved:
        assert found[1, 0] == 0.0
        bits = (found.view(torch.int32) - numbers.view(torch.int32)).abs().flatten()
        assert bits.tolist() == [1, 1, 1, 0, 1, 1]
    assert (moved[0] > numbers).tolist() == [[True, False, True], [False, True, False]]
    assert (moved[1] > numbers).tolist() == [[True, True, False], [False, True, True]]


class Recorder:
    """Stands for a learner; its losses tell how often it was asked to train."""

    def __init__(self) -> None:
        self.begun: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        if "initial" in command:
            save_file({"a": torch.ones(4), "b": torch.zeros(2)}, command["initial"])
            return {"tensors": 2}
        initial = command["order"]["initial"]
        self.begun.append(load_file(initial) if initial else {})
        return asdict(outcome(losses=[*self.losses, float(len(self.begun))]))


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Learners, Recorder, Recorder]:
    monkeypatch.setattr("benchmarks.quality.learners.RUNS", tmp_path / "runs")
    monkeypatch.setattr("benchmarks.quality.learners.digest", lambda _: "base")
    ours, reference = Recorder(), Recorder()
    peers: dict[str, Any] = {"ours": ours, "reference": reference}
    return Learners(peers, resume=True, sources="code"), ours, reference


def order_of(method: str) -> Order:
    return Order({"method": method, "task": Task.IMAGE_CLASSIFICATION.value}, "", "", "", "", 1)


def test_the_reference_trains_again_from_beginnings_a_bit_apart(
    recorded: tuple[Learners, Recorder, Recorder],
) -> None:
    learners, ours, reference = recorded
    order = order_of("LORA")
    learners.both(order, "rows", "reference")
    found = learners.nudged(order, "rows", "reference")
    assert ours.begun == [{}]  # it begins by itself
    assert [one.losses for one in found] == [[float(run)] for run in range(2, WAYS + 2)]
    first, *others = reference.begun
    for way, other in enumerate(others):
        torch.testing.assert_close(other["a"], nudge(first["a"], way), rtol=0, atol=0)
        assert not other["b"].any()
    assert learners.nudged(order, "rows", "reference") == found
    assert len(reference.begun) == WAYS + 1  # its files were read


def test_a_head_over_a_base_that_stays_has_no_beginning_to_nudge(
    recorded: tuple[Learners, Recorder, Recorder],
) -> None:
    learners, _, reference = recorded
    assert learners.nudged(order_of("HEAD"), "rows", "reference") == []
    assert reference.begun == []


@pytest.mark.parametrize(
    ("last", "own", "expected"),
    [
        (1.01, [], (None, "met")),  # not asked
        (1.50, [1.75, 1.25], (0.75, "met")),
        (1.50, [1.25, 1.0], (0.25, "missed")),
        (1.50, [], (None, "missed")),  # a head
    ],
)
def test_the_reference_is_asked_how_far_it_is_from_itself_where_curves_part(
    last: float,
    own: list[float],
    expected: tuple[float | None, str],
    bases: dict[Task, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"label": "a"}\n' * 16)
    monkeypatch.setattr(groups, "score", lambda *_: 1.0)
    asked: list[Order] = []

    def nudged(order: Order, *_: str) -> list[Outcome]:
        asked.append(order)
        return [outcome(losses=[2.0, loss]) for loss in own]

    pair = (outcome(losses=[2.0, last]), outcome(losses=[2.0, 1.0]))
    learners: Any = SimpleNamespace(both=lambda *_: pair, nudged=nudged)
    base = bases[Task.IMAGE_CLASSIFICATION]
    place = groups._Place(STUDIES["digits"], base, RowFiles(rows, rows), "", range(2))
    found = groups._repeated(place, "lora", learners)
    assert (found.reference_curve_distance, found.verdict) == expected
    assert len(asked) == (2 if last > 1.02 else 0)


def test_methods_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups._Place, "of", lambda name, _: SimpleNamespace(study=STUDIES[name]))
    monkeypatch.setattr(
        groups, "_repeated", lambda _, method, __: comparison([1.0], [1.0], method=method, settings={})
    )
    learners: Any = None
    for chosen, expected in (({"ia3", "full"}, ["ia3", "full"]), ({"qlora"}, [])):
        bench = groups.QualityBench(learners, 1, quick=False, methods=frozenset(chosen))
        assert [line.method for line in GROUPS["intents"](bench)] == expected


def test_lora_beside_full_is_ours_beside_ours() -> None:
    lora = comparison([0.9], [0.1])
    full = comparison([1.0], [0.1], method="full")
    [line] = lora_beside_full([lora, full, comparison([0.2], [0.2], method="head")])
    assert (line.figure, line.ratio, line.reference, line.verdict) == ("x_lora_vs_full", 0.9, full.ours, "")
    assert lora_beside_full([lora]) == []


def test_scores() -> None:
    rows = [{"label": "a"}, {"label": "a"}, {"label": "b"}]
    labels = {"labels": [["a"], ["b"], ["b"]]}
    assert score("accuracy", labels, rows) == pytest.approx(2 / 3)
    assert score("macro_f1", labels, rows) == pytest.approx(2 / 3)
    words = [{"tokens": ["x", "y", "z"], "tags": ["B-N", "I-N", "O"]}]
    assert score("entity_f1", {"labels": [["B-N", "I-N", "O"]]}, words) == 1.0
    assert score("entity_f1", {"labels": [["B-N", "O", "O"]]}, words) == 0.0
    with pytest.raises(ValueError, match="2 tags for 3 words"):
        score("entity_f1", {"labels": [["O", "O"]]}, words)
    told = {"log_probabilities": [-2.0, -4.0, -3.0], "supervised_tokens": [1, 2, 1]}
    assert score("loss", told, rows) == 2.25
    assert score("reward_accuracy", {"log_probabilities": [[1, 0], [0, 0], [0, 2]]}, rows) == 1 / 3
    answers = [{"completion": "yes"}, {"completion": "no"}]
    assert score("exact_match", {"answers": [" yes\n", "no."]}, answers) == 0.5
    with pytest.raises(ValueError, match="1 predictions for 3 rows"):
        score("accuracy", {"labels": [["a"]]}, rows)


def test_scores_of_several_labels_and_of_numbers() -> None:
    rows: list[dict[str, Any]] = [{"labels": ["a", "b"]}, {"labels": []}, {"labels": ["b"]}]
    found = {"labels": [["a"], [], ["b"]]}
    assert score("macro_f1_of_several", found, rows) == pytest.approx((1 + 2 / 3) / 2)
    # A label that no row has counts as well.
    assert score("macro_f1_of_several", {"labels": [["a"], ["c"], ["b"]]}, rows) == pytest.approx(5 / 9)
    numbers = [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}]
    assert score("spearman", {"numbers": [0.1, 0.3, 0.2]}, numbers) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 predictions for 3 rows"):
        score("spearman", {"numbers": [1.0, 2.0]}, numbers)


@pytest.mark.parametrize(
    ("rows", "problem", "predicted"),
    [
        ([{"label": "a"}, {"label": "c"}, {"label": "b"}], Problem.SINGLE_LABEL, {"labels": [["c"]] * 3}),
        (
            [{"labels": ["a", "c"]}, {"labels": []}, {"labels": ["b"]}],
            Problem.MULTI_LABEL,
            {"labels": [["c"]] * 3},
        ),
        ([{"score": 1.5}, {"score": -2.0}, {"score": 4.0}], Problem.REGRESSION, {"numbers": [-1.0] * 3}),
    ],
)
def test_the_reference_loses_what_ours_does(
    rows: list[dict[str, Any]], problem: Problem, predicted: dict[str, Any]
) -> None:
    vectors = torch.randn(3, 4, generator=torch.manual_seed(0))
    labels = classes(rows)
    head = torch.nn.Linear(4, len(labels) or 1)
    labelling = Labelling(None, head, told_by(rows), labels)
    given = [{**row, "vectors": vector[None]} for row, vector in zip(rows, vectors, strict=True)]
    targets = labelling.targets(rows)
    theirs, mine = labelling.loss(given), summed_loss(head(vectors), targets, problem) / len(rows)
    torch.testing.assert_close(theirs, mine)
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.arange(len(labels)) - 1 if labels else torch.tensor([-1.0]))
    assert labelling.predictions(given) == predicted


def test_the_reference_learns_numbers_in_the_unit_that_ours_has() -> None:
    rows = [{"score": score, "vectors": torch.ones(1, 2)} for score in (40.0, 10.0, 40.0, 70.0)]
    unit = Unit.of([row["score"] for row in rows])
    head = torch.nn.Linear(2, 1)
    labelling = Labelling(None, head, told_by(rows), (), mean=unit.mean, spread=unit.spread)
    assert labelling.targets(rows)[:, 0].tolist() == pytest.approx([unit.told(row["score"]) for row in rows])
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    assert labelling.loss(rows).item() == pytest.approx(1.0)
    assert labelling.predictions(rows) == {"numbers": [40.0] * 4}


def test_rank_is_among_different_candidates() -> None:
    rows = [{"positive": "p"}, {"positive": "q"}, {"positive": "p"}]
    # The second anchor points at p; the third's own text is the first's, and no rival.
    vectors = {"anchors": [[1, 0], [3, 1], [2, 0]], "candidates": [[1, 0], [0, 1], [1, 0]]}
    assert score("mrr_at_10", {"vectors": vectors}, rows) == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_words_are_tagged_by_the_placeholders() -> None:
    row = tagged("Flat 6603: Vesper Oakwhisper, (415) 555-0113.", "Flat 6603: [NAME], [PHONE].")
    assert row["tokens"] == [
        *["Flat", "6603", ":", "Vesper", "Oakwhisper", ",", "(", "415", ")", "555-0113", "."]
    ]
    assert row["tags"] == [
        *["O", "O", "O", "B-NAME", "I-NAME", "O", "B-PHONE", "I-PHONE", "I-PHONE", "I-PHONE", "O"]
    ]
    with pytest.raises(ValueError, match="placeholders"):
        tagged("another text", "[NAME] left")


def test_rows_are_the_same_in_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.rows.EXAMPLES", ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for name in STUDIES:
        files = rows_of(name, 7)
        assert files.digest == rows_of(name, 7).digest
        assert isinstance(files, RowFiles)
        assert files.train_rows > 100
        assert len(read(files.test)) == (180 if name == "digits" else 7)


def test_what_is_judged_in_the_test_rows_was_not_in_the_training_rows() -> None:
    train, test = reviews("train"), reviews("test")
    assert (len(train), len(test)) == (300, 72)
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert {row["score"] for row in train} == {stars / 2 for stars in range(2, 11)}
    learnt = {word for row in train for word in row["text"].lower().split()}
    assert not learnt & {"terrible", "mediocre", "fantastic", "dinner", "sauna"}
    assert train == reviews("train")


def test_rows_to_learn_from_can_be_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.rows.EXAMPLES", ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    whole, part = rows_of("redaction", 7), rows_of("redaction", 7, 10)
    assert (whole.train_rows, part.train_rows) == (300, 10)
    assert read(part.train) == read(whole.train)[:10]


def test_rows_of_language_models_are_encoded_as_we_train_on_them(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    files = RowFiles(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    files.train.write_text('{"prompt": "a", "completion": "b"}\n')
    files.test.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    found = json.loads(encoded_file(files, base).read_text())
    [row], [pair], [prompt] = found["train"], found["test"], found["prompts"]
    assert row["ids"][: len(prompt)] == prompt
    assert row["labels"] == [IGNORED] * len(prompt) + row["ids"][len(prompt) :]
    assert pair["chosen"] == row
    assert pair["rejected"]["ids"] != row["ids"]


def test_a_run_belongs_to_its_code(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    first, second = tmp_path / "code/a.py", tmp_path / "code/b.cpp"
    digests: list[str] = []
    for texts in (("x", "y"), ("x", "z"), ("xy", "")):
        first.write_text(texts[0])
        second.write_text(texts[1])
        digests.append(sources_digest([tmp_path / "code"]))
    (tmp_path / "code/a.pyc").touch()
    assert sources_digest([tmp_path / "code"]) == digests[-1]
    assert len(set(digests)) == 3
    assert all(path.exists() for path in READ)


def test_references_import_nothing_of_ours() -> None:
    home = ROOT / "benchmarks/quality"
    files = [
        *(home / "reference").glob("*.py"),
        *(home / f"{name}_worker.py" for name in ("reference", "trl")),
    ]
    # What they ask of this benchmark, too.
    files += [home / "order.py", home / "alone.py", ROOT / "benchmarks/peers/worker.py"]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert [name for name in names if name.startswith("finetuned")] == [], file


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    home = tmp_path_factory.mktemp("bases")
    encoder = make_encoder_base(home / "encoder")
    return {
        Task.IMAGE_CLASSIFICATION: make_resnet_base(home / "resnet"),
        Task.TEXT_GENERATION: make_base(home / "decoder"),
        Task.TEXT_CLASSIFICATION: encoder,
        Task.TOKEN_CLASSIFICATION: encoder,
        Task.FEATURE_EXTRACTION: encoder,
    }


@pytest.mark.parametrize("name", STUDIES)
def test_every_method_of_a_study_resolves(name: str, bases: dict[Task, Path], tmp_path: Path) -> None:
    study = STUDIES[name]
    files = RowFiles(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    files.train.write_text('{"text": "a", "label": "b"}\n' * 40)
    assert study.base in BASES
    for method in study.methods:
        spec = matched_spec(study, method, 1, bases[study.task], files)
        assert str(BaseName.parse(spec.base)) == f"bases/{study.base}"
        assert spec.optimization.learning_rate
        assert (spec.optimization.batch_rows, spec.optimization.seed) == (study.batch_rows, 1)
        batches, rates = steps_of(spec, 40)
        assert len(batches) == len(rates) == spec.optimization.max_steps
        assert {len(rows) for rows in batches} == {study.batch_rows}
        assert max(rates) == spec.optimization.learning_rate
        order = Order(spec.model_dump(mode="json"), "", "", "", "", 1, batches=batches)
        assert Order(**json.loads(json.dumps(order.as_json()))) == order
    for method in study.tuned:
        spec = default_spec(study, method, 2, bases[study.task], files)
        assert (spec.method, spec.optimization.seed) == (METHODS[method]["method"], 2)
        assert spec.objective is study.objective
        assert spec.data.holdout_fraction == 0.1
    assert study.tuned_base in {"", *BASES}


def test_a_head_that_learns_numbers_has_its_defaults_as_at_submission(
    bases: dict[Task, Path], tmp_path: Path
) -> None:
    files = RowFiles(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    files.train.write_text("".join(f'{{"text": "a", "score": {score}}}\n' for score in (1, 5, 1, 5)))
    base = bases[Task.TEXT_CLASSIFICATION]
    for spec in (
        matched_spec(STUDIES["ratings"], "head", 1, base, files),
        default_spec(STUDIES["ratings"], "head", 1, base, files),
    ):
        assert (spec.optimization.learning_rate, spec.optimization.epochs) == (5e-3, 10.0)


def test_results_stay_and_make_a_table(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    line = comparison([0.9], [0.8], curve_distance=1e-5, first_loss=2.3)
    report.save(path, [line, comparison([0.5], [0.5], method="full")], 0.0)
    report.save(path, [line], 1.5)
    entries = json.loads(path.read_text())
    assert [(entry["figure"], entry["busy_cores_before"]) for entry in entries] == [
        ("x_lora", 1.5),
        ("x_full", 0.0),
    ]
    head, rule, row, _ = report.markdown(entries).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row == "| x_lora | accuracy | 0.900 | 0.800 | 1.125 | 1e-05 of 2.3 | 0.0 / 0.0 | 5 / 5 | 10 | 4 |"


def test_a_curve_stands_beside_the_references_own() -> None:
    apart = comparison([0.9], [0.8], curve_distance=0.7, first_loss=1.6, reference_curve_distance=0.6)
    entries = [asdict(apart), asdict(comparison([0.9], [0.8]))]
    # As entries were before anybody asked.
    old = {name: value for name, value in asdict(apart).items() if name != "reference_curve_distance"}
    told = [report.cells(entry)[5] for entry in (*entries, old)]
    assert told == ["0.7 / 0.6 of 1.6", "", "0.7 of 1.6"]


def test_every_group_is_told_of() -> None:
    told = (ROOT / "benchmarks/README.md").read_text()
    assert [name for name in GROUPS if f"`{name}`" not in told] == []


HOLDS = """
from benchmarks.quality.alone import WorkFailed, alone

def work(mark):
    early = bytearray(b"x") * 30_000_000
    mark()
    held = bytearray(b"x") * 50_000_000
    mark()
    late = bytearray(b"x") * 80_000_000
    return {"held": len(held)}

found = alone(work)
assert found["held"] == 50_000_000
assert 45e6 < found["peak_bytes"] < 75e6, found
try:
    alone(lambda mark: 1 / 0)
except WorkFailed as error:
    assert "status 1" in str(error)
else:
    raise AssertionError
"""


def test_a_run_alone_is_watched_between_its_marks() -> None:
    """In a process of its own: pytest's has threads, which do not survive a fork."""
    ran = subprocess.run([sys.executable, "-c", HOLDS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "ZeroDivisionError" in ran.stderr
