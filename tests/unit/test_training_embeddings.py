"""Training of vectors: the loss and its gradient against plain PyTorch in float64, figures against their definitions,
and a whole job.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished
from finetuned_service.training.embeddings.figures import rankings, retrieval
from finetuned_service.training.embeddings.loss import cosine_loss, in_batch_loss
from finetuned_service.training.embeddings.model import EmbeddingModel
from finetuned_service.training.embeddings.pairs import EmbeddingData, PairExample, read_embedding_data
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Method, Pooling, Task
from scipy.stats import spearmanr
from tiny_bottlenecks import add_bottlenecks
from tiny_encoders import make_encoder_base
from training_tasks import Reports, StopAfter, make_task
from transformers import AutoModel

ANIMALS = ("cat", "dog", "bird")
PLACES = ("mat", "tree", "house")
MOODS = ("good", "bad", "happy")
# The first letter of each tells which belongs to which; to the base these words are all alike.
PAIRS = [
    {"anchor": f"{mood} {animal}", "positive": f"the {place} {verb} {word}"}
    for mood, word in zip(MOODS, ("fine", "awful", "sad"), strict=True)
    for animal, place in zip(ANIMALS, PLACES, strict=True)
    for verb in ("sat", "ran", "flew")
]
LORA: dict[str, Any] = {"rank": 8}
FAST = {"max_steps": 60, "batch_rows": 9, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


def by_hand(anchors: torch.Tensor, candidates: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """One row after another, each cosine by its definition."""
    losses = []
    for n, anchor in enumerate(anchors):
        scores = []
        for m, candidate in enumerate(candidates):
            if m == n or not same[n, m]:
                cosine = (anchor @ candidate) / (anchor.norm() * candidate.norm())
                scores.append(torch.exp(20 * cosine))
        own = torch.exp(20 * (anchor @ candidates[n]) / (anchor.norm() * candidates[n].norm()))
        losses.append(-torch.log(own / torch.stack(scores).sum()))
    return torch.stack(losses).sum()


def test_the_loss_and_its_gradient_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    anchors = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    same = torch.zeros(4, 7, dtype=torch.bool)
    same[0, 0] = same[0, 2] = same[2, 2] = same[2, 0] = True
    found, expected = in_batch_loss(anchors, candidates, same, 20.0), by_hand(anchors, candidates, same)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, [anchors, candidates]),
        torch.autograd.grad(expected, [anchors, candidates]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    scores = torch.tensor([1.0, 0.0, -0.5, 0.25], dtype=torch.float64)
    cosines = torch.stack([a @ c / (a.norm() * c.norm()) for a, c in zip(anchors, candidates, strict=False)])
    torch.testing.assert_close(
        cosine_loss(anchors, candidates[:4], scores), ((cosines - scores) ** 2).sum(), rtol=1e-12, atol=0
    )


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA},
    "layers": {
        "method": "LAYERS",
        "layers": {"last": 1, "modules": ["embeddings.LayerNorm", "layer.0.attention.self.value"]},
    },
    "full": {"method": "FULL"},
    "houlsby": {"method": "BOTTLENECK", "bottleneck": {"width": 6}},
    "pfeiffer": {"method": "BOTTLENECK", "bottleneck": {"width": 6, "placement": "PFEIFFER"}},
}
ROWS = [
    PairExample((2, 7, 9, 3), (2, 5, 3), ((2, 11, 12, 3),)),
    PairExample((2, 8, 3), (2, *range(5, 15), 3)),
    PairExample((2, 10, 3), (2, 5, 3)),  # the positive of the first: no negative of it
]
SCORED = [
    PairExample(row.anchor, row.positive, (), score)
    for row, score in zip(ROWS, (0.9, -0.2, 0.4), strict=True)
]


def plainly(
    encoder: Path, ours: EmbeddingModel
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """transformers' model in float64, what our method puts in the place of its parameters, and what trains."""
    plain: Any = AutoModel.from_pretrained(encoder, attn_implementation="eager", add_pooling_layer=False)
    begun = dict(ours.named_parameters())
    bottlenecks: dict[str, Any] = add_bottlenecks(plain, begun)
    plain = plain.double().eval()
    if bottlenecks:
        return plain, {}, bottlenecks
    leaves = {name: parameter.detach().double().cpu().requires_grad_() for name, parameter in begun.items()}
    merged = {name: leaf for name, leaf in leaves.items() if ".lora_" not in name}
    for name, weight in plain.named_parameters():
        module, scaling = name.removesuffix(".weight"), 2.0
        if f"{module}.lora_A.weight" in leaves:
            update = leaves[f"{module}.lora_B.weight"] @ leaves[f"{module}.lora_A.weight"]
            merged[name] = weight.detach() + scaling * update
    return plain, merged, leaves


@pytest.mark.parametrize("rows", [ROWS, SCORED], ids=["pairs", "scored"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_s_gradient_is_that_of_a_plain_loop_in_float64(
    encoder: Path, method: str, rows: list[PairExample]
) -> None:
    wanted = TrainSpec.model_validate(
        {"dataset": "", "adapter": "", "task": "feature-extraction", **METHODS[method]}
    )
    spec = resolve_method(wanted, BaseFacts.of_directory(encoder))
    ours = EmbeddingModel.load(encoder, spec, Pooling.MEAN)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            # They begin at zero, where what is under them has no gradient.
            if "lora_B" in name or "adapter_up" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    loss = ours.loss_of(rows, 1 / len(rows))
    loss.backward()
    plain, merged, leaves = plainly(encoder, ours)

    def vector(tokens: tuple[int, ...]) -> torch.Tensor:
        inputs = {"input_ids": torch.tensor([tokens])}
        out: Any = torch.func.functional_call(plain, merged, kwargs=inputs)
        return out.last_hidden_state[0].mean(0)

    anchors = torch.stack([vector(row.anchor) for row in rows])
    texts = [row.positive for row in rows] + [negative for row in rows for negative in row.negatives]
    candidates = torch.stack([vector(text) for text in texts])
    if rows is SCORED:
        cosines = (anchors * candidates).sum(1) / (anchors.norm(dim=1) * candidates.norm(dim=1))
        expected = ((cosines - torch.tensor([row.score for row in rows])) ** 2).mean()
    else:
        same = torch.tensor([[text == row.positive for text in texts] for row in rows])
        expected = by_hand(anchors, candidates, same) / len(rows)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert dict(ours.named_parameters()).keys() == leaves.keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double().cpu(), leaves[name].grad, rtol=2e-3, atol=2e-5)


def test_figures_are_their_definitions() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=np.float32)
    corpus = np.array([[0.0, 2.0], [3.0, 0.1], [1.0, 0.9]], dtype=np.float32)
    ranked = rankings(queries, corpus)
    assert ranked.tolist() == [[1, 2, 0], [0, 2, 1], [2, 1, 0]]
    figures = retrieval(ranked, [frozenset({1}), frozenset({2}), frozenset({0, 2})])
    assert figures == {
        "mrr_at_10": pytest.approx((1 + 1 / 2 + 1) / 3),
        "recall_at_1": pytest.approx((1 + 0 + 1 / 2) / 3),
        "recall_at_10": 1.0,
    }


def figures(metrics: Any) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


def train(directory: Path, base: Path, rows: Any, **spec: Any) -> tuple[Any, Any]:
    settings = {"task": "feature-extraction", "lora": LORA, "optimization": FAST, **spec}
    task = make_task(directory, base, train=rows, **settings)
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    return reports.of(TrainFinished)[0], task


@pytest.mark.parametrize("method", [Method.LORA, Method.BOTTLENECK, Method.FULL])
def test_texts_that_belong_together_are_found(encoder: Path, tmp_path: Path, method: Method) -> None:
    finished, task = train(tmp_path, encoder, PAIRS, heldout=PAIRS, method=method, bottleneck={"width": 16})
    facts = check_adapter(Path(task.output_directory), BaseGeometry.of_directory(encoder), 64)
    assert (facts.method, facts.task, facts.head) == (method, Task.FEATURE_EXTRACTION, None)
    found, plain = figures(finished.metrics), figures(finished.baseline_metrics)
    assert set(found) == {"mrr_at_10", "recall_at_1", "recall_at_10"}
    assert found["mrr_at_10"] > 0.9
    assert plain["mrr_at_10"] < 0.6
    # Three texts belong to each anchor, and one is the first.
    assert found["recall_at_1"] == pytest.approx(1 / 3, abs=0.04)


def test_scored_pairs_are_learned_and_measured_by_their_order(encoder: Path, tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"the {a}", "sentence2": f"a {b} {word}", "score": score}
        for a in ANIMALS
        for b in ANIMALS
        for word, score in (("good", 0.9), ("bad", -0.2))
    ]
    finished, _ = train(tmp_path, encoder, rows, heldout=rows)
    assert figures(finished.metrics)["spearman"] > figures(finished.baseline_metrics)["spearman"] + 0.2
    sample = finished.samples[0]
    expected = [float(s.expected) for s in finished.samples]
    found = [float(s.answer) for s in finished.samples]
    assert figures(finished.metrics)["spearman"] == pytest.approx(
        spearmanr(expected, found).statistic, abs=0.02
    )
    assert " | " in sample.prompt


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(encoder: Path, tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole", encoder, PAIRS, lora={"rank": 4, "dropout": 0.1})
    settings = {"task": "feature-extraction", "lora": {"rank": 4, "dropout": 0.1}, "optimization": FAST}
    task = make_task(tmp_path / "parts", encoder, train=PAIRS, **settings)
    stop = StopAfter(23)
    assert run(task, stop, stop) == EXIT_STOPPED
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    digests = [
        check_adapter(Path(made.output_directory), BaseGeometry.of_directory(encoder), 64).digest
        for made in (whole, task)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("phase", ["preparing", "baseline", "evaluating"])
def test_a_run_that_is_stopped_before_or_after_its_steps_ends_by_itself(
    encoder: Path, tmp_path: Path, phase: str
) -> None:
    settings = {"task": "feature-extraction", "optimization": FAST}
    task = make_task(tmp_path, encoder, train=PAIRS, **settings)
    stop = StopAfter(phase=phase)
    assert run(task, stop, stop) == EXIT_STOPPED
    assert stop.reports.of(Progress)[-1].phase == phase
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"sentence1": "a", "sentence2": "b", "score": 4.2}] * 3,
            "line 1 has the score 4.2; a cosine",
        ),
        ([{"anchor": "the cat " * 30, "positive": "b"}] * 3, "line 1 has 62 tokens"),
        ([{"anchor": "a", "positive": "b"}], "1 rows are left to train on"),
    ],
)
def test_rows_that_cannot_be_trained_on(
    encoder: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    task = make_task(tmp_path, encoder, train=rows, heldout=rows, task="feature-extraction", lora=LORA)
    with pytest.raises(InvalidData, match=message):
        run(task, Reports(), threading.Event())


def test_a_row_of_which_several_texts_are_cut_is_one_row(encoder: Path, tmp_path: Path) -> None:
    long, short = "cat sat " * 20, "cat"
    rows = [
        {"anchor": long, "positive": long + "flew", "negatives": [long + "ran"]},
        {"anchor": short, "positive": long},
        {"anchor": short, "positive": short + " mat"},
    ]
    data = {"max_row_tokens": 8, "long_rows": "TRUNCATE"}
    task = make_task(tmp_path, encoder, train=rows, heldout=rows, task="feature-extraction", data=data)
    found = read_embedding_data(task.spec, encoder, Path(task.train_path), Path(task.eval_path))
    assert found.report.truncated_rows == 4  # two of each part


def read_data(directory: Path, encoder: Path, rows: list[dict[str, Any]], **settings: Any) -> EmbeddingData:
    task = make_task(directory, encoder, train=rows, task="feature-extraction", lora=LORA, **settings)
    held_out = Path(task.eval_path) if task.eval_path else None
    return read_embedding_data(task.spec, encoder, Path(task.train_path), held_out)


def test_what_is_held_out_is_held_out_of_what_fits(encoder: Path, tmp_path: Path) -> None:
    rows = [*PAIRS[:4], *({"anchor": "cat sat " * 20, "positive": f"mat {n}"} for n in range(9))]
    for seed in range(5):
        data = {"max_row_tokens": 16, "long_rows": "DROP"}
        found = read_data(tmp_path / str(seed), encoder, rows, data=data, optimization={"seed": seed})
        report = found.report
        assert (report.train_rows, report.eval_rows, report.dropped_rows) == (2, 2, 9)


def test_a_pair_is_never_held_out_alone(encoder: Path, tmp_path: Path) -> None:
    assert len(read_data(tmp_path / "few", encoder, PAIRS[:8]).heldout) == 2
    scored = [{"sentence1": f"cat {n}", "sentence2": "b", "score": 0.5} for n in range(8)]
    assert len(read_data(tmp_path / "scored", encoder, scored).heldout) == 1
    with pytest.raises(InvalidData, match="1 row is held out; a pair is told apart from others"):
        read_data(tmp_path / "one", encoder, PAIRS[:8], heldout=PAIRS[8:9])
    hard = [{**PAIRS[8], "negatives": ["the tree"]}]
    assert len(read_data(tmp_path / "hard", encoder, PAIRS[:8], heldout=hard).heldout) == 1


def test_steps_of_one_pair_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"is 1; .*set at least 2, or give the rows negatives") as refused:
        read_data(tmp_path / "one", encoder, PAIRS[:8], optimization={"batch_rows": 1})
    assert refused.value.violations[0].field == "spec.optimization.batch_rows"
    hard = [{**row, "negatives": ["the tree"]} for row in PAIRS[:8]]
    assert read_data(tmp_path / "hard", encoder, hard, optimization={"batch_rows": 1}).report.train_rows == 6


def test_the_loss_of_held_out_rows_counts_none_as_told_apart_from_nothing(
    encoder: Path, tmp_path: Path
) -> None:
    settings = {"task": "feature-extraction", "lora": LORA, "optimization": {"batch_rows": 4}}
    task = make_task(tmp_path, encoder, train=PAIRS[:9], **settings)
    model = EmbeddingModel.load(encoder, task.spec, Pooling.MEAN)
    rows = read_embedding_data(task.spec, encoder, Path(task.train_path), Path(task.train_path)).train
    first, rest = model.measure(rows[:4]).loss, model.measure(rows[4:9]).loss
    assert model.measure(rows[:9]).loss == pytest.approx((4 * first + 5 * rest) / 9, rel=1e-5)


def test_lengths_are_told_before_anything_is_cut(encoder: Path, tmp_path: Path) -> None:
    rows = [{"anchor": "cat " * 30, "positive": f"mat {n}"} for n in range(6)]
    lengths = [
        read_data(tmp_path / str(most), encoder, rows, data={"max_row_tokens": most, "long_rows": "TRUNCATE"})
        for most in (8, 16)
    ]
    assert lengths[0].report.row_tokens == lengths[1].report.row_tokens
    assert lengths[0].report.row_tokens.longest > 2 * 16


def test_rows_are_named_as_they_stand_in_the_file(encoder: Path, tmp_path: Path) -> None:
    # Some of both are held out.
    long = [{**row, "anchor": f"{row['anchor']} {'cat ' * 50}"} for row in PAIRS[:9]]
    rows = [row for pair in zip(PAIRS[9:18], long, strict=True) for row in pair]
    settings: dict[str, Any] = {"task": "feature-extraction", "lora": LORA}
    task = make_task(tmp_path, encoder, train=rows, data={"holdout_fraction": 0.4}, **settings)
    with pytest.raises(InvalidData, match="9 rows cannot be used") as refused:
        run(task, Reports(), threading.Event())
    named = sorted(violation.field for violation in refused.value.violations)
    assert named == sorted(f"line {number}" for number in range(2, 19, 2))
    apart = make_task(tmp_path / "apart", encoder, train=PAIRS, heldout=rows, **settings)
    with pytest.raises(InvalidData, match=r"9 rows .* eval_dataset line 2 has \d+ tokens"):
        run(apart, Reports(), threading.Event())
