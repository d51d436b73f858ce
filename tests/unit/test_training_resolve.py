"""Defaults written back into a TrainSpec, and settings that contradict the base, the data or each other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.methods import BaseFacts
from finetuned_service.jobs.methods.lora import lora_config
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.usual import default_learning_rate
from finetuned_service.vocabulary import Pooling
from safetensors.numpy import save_file

BASE = BaseFacts(hidden_size=576, context_tokens=8192, linear_modules=("down_proj", "k_proj", "q_proj"))

ENCODES = dataclasses.replace(BASE, pooling=Pooling.MEAN)


def resolve(train_rows: int = 300, base: BaseFacts = BASE, **parts: object) -> TrainSpec:
    spec = TrainSpec.model_validate({"dataset": "tenants/t/datasets/d", "adapter": "a", **parts})
    return resolve_train(spec, base=base, train_rows=train_rows)


def fields(raised: pytest.ExceptionInfo[InvalidField]) -> list[str]:
    return [violation.field for violation in raised.value.violations]


def test_every_default_is_written_back():
    spec = resolve()
    assert spec.lora.alpha == 32.0
    assert spec.lora.target_modules == ("down_proj", "k_proj", "q_proj")
    assert spec.optimization.epochs == 3.0
    assert spec.optimization.max_steps == 113
    assert spec.optimization.micro_batch_rows == 8
    assert spec.optimization.learning_rate == 1.3e-3
    assert spec.optimization.checkpoint_interval_steps == 12
    assert spec.data.max_row_tokens == 1024


@pytest.mark.parametrize(("rank", "scale"), [(1, 8.0), (16, 2.0), (64, 1.0), (256, 0.5)])
def test_updates_that_are_rank_stabilized_count_twice_at_the_usual_rank(rank: int, scale: float) -> None:
    """Twice the rank made them count eight times there, for which no usual rate is meant."""
    plain, stable = (
        lora_config(resolve(lora={"rank": rank, "rank_stabilized": flag}).lora) for flag in (False, True)
    )
    assert plain.scaling_of("q_proj") == 2.0
    assert stable.scaling_of("q_proj") == scale
    own = resolve(lora={"rank": rank, "rank_stabilized": True, "alpha": 3.0})
    assert own.lora.alpha == 3.0


@pytest.mark.parametrize(
    ("kind", "epochs", "rate"),
    [(None, 30.0, 1e-2), (RowKind.LABELLED_TEXT, 30.0, 1e-2), (RowKind.SCORED_TEXT, 10.0, 5e-3)],
)
def test_a_head_that_learns_numbers_stops_sooner(kind: RowKind | None, epochs: float, rate: float) -> None:
    wanted: dict[str, object] = {"dataset": "tenants/t/datasets/d", "adapter": "a", "method": "HEAD"}
    spec = TrainSpec.model_validate(wanted | {"task": "text-classification"})
    resolved = resolve_train(spec, base=ENCODES, train_rows=80, kind=kind)
    assert (resolved.optimization.epochs, resolved.optimization.learning_rate) == (epochs, rate)
    assert TrainSpec.model_validate(resolved.model_dump()) == resolved
    own = TrainSpec.model_validate(
        wanted | {"task": "text-classification", "optimization": {"learning_rate": 0.5, "epochs": 2}}
    )
    set_by_hand = resolve_train(own, base=ENCODES, train_rows=80, kind=kind).optimization
    assert (set_by_hand.epochs, set_by_hand.learning_rate) == (2.0, 0.5)
    # A method that changes the base keeps its own rate.
    lora = TrainSpec.model_validate(wanted | {"task": "text-classification", "method": "LORA"})
    assert resolve_train(lora, base=ENCODES, train_rows=80, kind=kind).optimization == (
        resolve_train(lora, base=ENCODES, train_rows=80).optimization
    )


@pytest.mark.parametrize(
    ("rows", "batch_rows", "epochs", "steps"),
    [
        (240, 8, 8.0, 240),
        (100, 8, 8.0, 100),
        (300, 8, 7.0, 263),
        (720, 8, 3.0, 270),
        (9000, 8, 3.0, 3375),
        (240, 32, 8.0, 60),
    ],
)
def test_few_rows_with_several_labels_are_seen_more_often(
    rows: int, batch_rows: int, epochs: float, steps: int
) -> None:
    asked = {"task": "text-classification", "optimization": {"batch_rows": batch_rows}}
    for method, kind, expected in (
        ("LORA", RowKind.MULTI_LABEL_TEXT, (epochs, steps)),
        ("LORA", RowKind.LABELLED_TEXT, (3.0, math.ceil(3 * rows / batch_rows))),
        ("HEAD", RowKind.MULTI_LABEL_TEXT, (30.0, math.ceil(30 * rows / batch_rows))),
    ):
        spec = TrainSpec.model_validate(
            {"dataset": "tenants/t/datasets/d", "adapter": "a", "method": method, **asked}
        )
        found = resolve_train(spec, base=ENCODES, train_rows=rows, kind=kind).optimization
        assert (found.epochs, found.max_steps) == expected


@pytest.mark.parametrize(
    ("rows", "batch_rows", "epochs", "steps", "rate"),
    [
        (144, 8, 6.0, 108, 1.9e-3),
        (270, 8, 4.0, 135, 1.9e-3),
        (320, 8, 3.0, 120, 1.9e-3),
        (402, 8, 3.0, 151, 1.3e-3),
        (9000, 8, 3.0, 3375, 1.3e-3),
        (144, 4, 4.0, 144, 1.9e-3),
    ],
)
def test_few_answers_are_seen_more_often_and_at_a_higher_rate(
    rows: int, batch_rows: int, epochs: float, steps: int, rate: float
) -> None:
    usual = (3.0, math.ceil(3 * rows / batch_rows), 1.3e-3)
    for method, kind, expected in (
        ("LORA", RowKind.CHAT, (epochs, steps, rate)),
        ("LORA", RowKind.PROMPT_COMPLETION, (epochs, steps, rate)),
        # Measured for answers and low-rank updates alone.
        ("LORA", RowKind.TEXT, usual),
        ("IA3", RowKind.CHAT, (*usual[:2], 3e-3)),
        ("LORA", None, usual),
    ):
        spec = TrainSpec.model_validate(
            {
                "dataset": "tenants/t/datasets/d",
                "adapter": "a",
                "method": method,
                "optimization": {"batch_rows": batch_rows},
            }
        )
        found = resolve_train(spec, base=BASE, train_rows=rows, kind=kind).optimization
        assert (found.epochs, found.max_steps, found.learning_rate) == expected


@pytest.mark.parametrize(
    ("asked", "rate"),
    [
        ({"max_steps": 7}, 1.9e-3),
        ({"max_steps": 3000}, 1.3e-3),
        ({"epochs": 2.0}, 1.9e-3),
        ({"epochs": 20.0}, 1.3e-3),
        ({"learning_rate": 0.25}, 0.25),
    ],
)
def test_the_higher_rate_of_answers_is_for_short_runs(asked: dict[str, float], rate: float) -> None:
    wanted: dict[str, object] = {"dataset": "tenants/t/datasets/d", "adapter": "a", "method": "LORA"}
    spec = TrainSpec.model_validate(wanted | {"optimization": asked})
    assert (
        resolve_train(spec, base=BASE, train_rows=144, kind=RowKind.CHAT).optimization.learning_rate == rate
    )


def test_a_resolved_spec_stays_as_it_is():
    assert resolve_train(resolve(), base=BASE, train_rows=7) == resolve()


def test_steps_decide_where_both_are_given():
    spec = resolve(optimization={"max_steps": 60, "epochs": 1.0, "batch_rows": 10})
    assert (spec.optimization.max_steps, spec.optimization.epochs) == (60, 1.0)
    assert resolve(optimization={"max_steps": 60, "batch_rows": 10}).optimization.epochs == 2.0


def test_a_run_has_at_least_one_step_and_checkpoints_are_not_too_close():
    spec = resolve(train_rows=1, optimization={"epochs": 0.5})
    assert (spec.optimization.max_steps, spec.optimization.checkpoint_interval_steps) == (1, 5)


def test_rows_fit_a_short_context():
    base = BaseFacts(hidden_size=64, context_tokens=256, linear_modules=("q_proj",))
    assert resolve(base=base).data.max_row_tokens == 256


def test_the_learning_rate_is_one_of_method_and_kind_of_base():
    def rate(task: str, method: str, *, convolves: bool = False) -> float:
        base = dataclasses.replace(
            BASE, convolves=convolves, layers=("layers.0",), sublayers=("layers.0.mlp",)
        )
        return resolve(base=base, task=task, method=method).optimization.learning_rate or 0.0

    assert [rate("text-generation", method) for method in ("LORA", "LAYERS", "FULL")] == [
        1.3e-3,
        1.3e-4,
        1.3e-4,
    ]
    methods = ("LORA", "LAYERS", "FULL", "BOTTLENECK", "IA3")
    classes = [rate("text-classification", method) for method in methods]
    assert classes == [1.3e-3, 6.5e-4, 1.3e-4, 1.3e-3, 1e-2]
    vectors = [rate("feature-extraction", method) for method in methods]
    assert vectors == [1.3e-3, 6.5e-4, 6.5e-5, 1.3e-3, 1e-2]
    images = [rate("image-classification", method, convolves=True) for method in ("LORA", "LAYERS", "FULL")]
    assert images == [5.2e-4, 6.5e-4, 1.3e-4]


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "image-classification"])
def test_a_head_beside_other_parameters_has_at_least_the_usual_rate_of_low_rank_updates(task: str) -> None:
    """Whole parameters want a tenth of it, and their head, which begins with zeros, hardly left them."""
    images = task == "image-classification"
    base = dataclasses.replace(BASE, convolves=images, layers=("layers.0",), sublayers=("layers.0.mlp",))
    usual = 5.2e-4 if images else 1.3e-3

    def rates(method: str, **optimization: float) -> tuple[float | None, float | None]:
        found = resolve(base=base, task=task, method=method, optimization=optimization).optimization
        return found.learning_rate, found.head_learning_rate

    assert rates("FULL") == (1.3e-4, usual)
    assert rates("LORA") == (usual, usual)
    assert rates("FULL", learning_rate=2e-5) == (2e-5, usual)
    assert rates("FULL", learning_rate=0.5) == (0.5, 0.5)
    assert rates("FULL", head_learning_rate=1e-6) == (1.3e-4, 1e-6)
    assert rates("HEAD") == (1e-2, None)
    going_on = {"task": task, "method": "FULL", "continue_from": "tenants/t/adapters/a/versions/1"}
    assert resolve(base=base, **going_on).optimization.head_learning_rate == 1.3e-4
    diverged = going_on | {"continue_from": "tenants/t/jobs/j"}
    assert resolve(base=base, **diverged).optimization.head_learning_rate == usual


@pytest.mark.parametrize(
    ("task", "method"),
    [("text-classification", "HEAD"), ("text-generation", "LORA"), ("feature-extraction", "FULL")],
)
def test_the_rate_of_a_head_that_is_not_there_is_refused(task: str, method: str) -> None:
    with pytest.raises(InvalidField, match="no head trains beside other parameters: set learning_rate") as e:
        resolve(base=ENCODES, task=task, method=method, optimization={"head_learning_rate": 1e-3})
    assert fields(e) == ["spec.optimization.head_learning_rate"]


def test_the_learning_rate_falls_with_the_width():
    assert default_learning_rate(2000) == 5e-4
    assert default_learning_rate(576) == 1.3e-3
    assert default_learning_rate(4096) == 2.9e-4


def test_unknown_modules_are_named_beside_the_known():
    with pytest.raises(
        InvalidField, match="'c_attn', 'lm_head'; the base's linear modules are down_proj"
    ) as e:
        resolve(lora={"target_modules": ["lm_head", "q_proj", "c_attn"]})
    assert fields(e) == ["spec.lora.target_modules"]


@pytest.mark.parametrize("rows", [3, 16])
def test_micro_batches_must_divide_the_batch(rows):
    with pytest.raises(InvalidField, match=rf"is {rows}; it must divide batch_rows \(8\): 1, 2, 4, 8") as e:
        resolve(optimization={"micro_batch_rows": rows})
    assert fields(e) == ["spec.optimization.micro_batch_rows"]


def test_all_violations_come_at_once():
    with pytest.raises(InvalidField) as e:
        resolve(
            lora={"target_modules": ["nope"]},
            data={"max_row_tokens": 9000, "holdout_fraction": 0.0},
            promote_if={"alias": "default"},
            base=BaseFacts(hidden_size=576, context_tokens=64, linear_modules=("q_proj",)),
        )
    assert fields(e) == [
        "spec.lora.target_modules",
        "spec.data.max_row_tokens",
        "spec.evaluation.generation_max_tokens",
        "spec.promote_if",
    ]


def test_more_steps_than_a_job_may_have_are_refused_with_what_makes_them():
    most = resolve(10_000, optimization={"epochs": 1000, "batch_rows": 1})
    assert most.optimization.max_steps == 10_000_000
    assert TrainSpec.model_validate_json(most.model_dump_json()) == most
    with pytest.raises(InvalidField) as raised:
        resolve(12_000, optimization={"epochs": 1000, "batch_rows": 1, "micro_batch_rows": 2})
    assert fields(raised) == ["spec.optimization.micro_batch_rows", "spec.optimization.max_steps"]
    assert (
        "would be 12,000,000, which is what 1000 epochs take with batch_rows 1; allowed: 1 to 10,000,000. Choose"
        in (raised.value.message)
    )


def test_what_the_weights_to_continue_decide_is_held_to_the_bounds_too():
    """A server may serve larger ranks than a job may have."""
    version = "tenants/t/adapters/a/versions/3"
    spec = TrainSpec.model_validate(
        {"dataset": "tenants/t/datasets/d", "adapter": "a", "continue_from": version}
    )
    large = spec.lora.model_copy(update={"rank": 512, "rank_pattern": {"q_proj": 300}})
    with pytest.raises(InvalidField) as raised:
        resolve_train(spec.model_copy(update={"lora": large}), base=BASE, train_rows=9, max_rank=1024)
    assert fields(raised) == ["spec.lora.rank", "spec.lora.rank_pattern.q_proj"]
    assert raised.value.violations[0].description == (
        f"is 512 in {version}; input should be less than or equal to 256: train without continue_from"
    )


def test_promotion_by_answers_needs_answers():
    with pytest.raises(InvalidField) as e:
        resolve(evaluation={"generation_rows": 0}, promote_if={"alias": "default"})
    assert fields(e) == ["spec.promote_if.metric"]
    by_loss = resolve(evaluation={"generation_rows": 0}, promote_if={"alias": "default", "metric": "loss"})
    assert by_loss.promote_if is not None


def test_facts_are_read_from_a_base(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "max_position_embeddings": 32}))
    matrix, vector = np.zeros((4, 8), np.float32), np.zeros(8, np.float32)
    save_file(
        {
            "model.embed_tokens.weight": matrix,
            "model.layers.0.self_attn.q_proj.weight": matrix,
            "model.layers.11.mlp.up_proj.weight": matrix,
            "model.layers.0.input_layernorm.weight": vector,
            "model.layers.0.self_attn.q_proj.bias": vector,
            "lm_head.weight": matrix,
        },
        tmp_path / "model.safetensors",
    )
    facts = BaseFacts.of_directory(tmp_path)
    names = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj")
    assert (facts.hidden_size, facts.context_tokens, facts.linear_modules) == (8, 32, names)
    assert facts.linear_kinds == ("q_proj", "up_proj")


@pytest.mark.parametrize(
    ("task", "kind", "figures"),
    [
        ("text-classification", RowKind.SCORED_TEXT, ["spearman", "pearson", "mean_absolute_error", "loss"]),
        ("text-classification", RowKind.MULTI_LABEL_TEXT, ["macro_f1", "micro_f1", "exact_match", "loss"]),
        ("text-classification", None, ["macro_f1", "accuracy", "loss"]),
        ("token-classification", None, ["entity_f1", "accuracy", "loss"]),
        ("feature-extraction", RowKind.PAIR, ["mrr_at_10", "recall_at_1", "recall_at_10"]),
        ("feature-extraction", RowKind.SCORED_PAIR, ["spearman", "pearson"]),
        ("text-generation", RowKind.CHAT, ["exact_match", "loss"]),
        ("text-generation", RowKind.TEXT, ["loss"]),
    ],
)
def test_a_promotion_is_decided_by_what_is_measured_of_the_held_out_rows(
    task: str, kind: RowKind | None, figures: list[str]
) -> None:
    def resolved(metric: str, held_out: RowKind | None) -> str:
        wanted: dict[str, object] = {
            "dataset": "tenants/t/datasets/d",
            "adapter": "a",
            "method": "LORA",
            "task": task,
            "promote_if": {"alias": "prod", "metric": metric},
        }
        spec = TrainSpec.model_validate(wanted)
        found = resolve_train(spec, base=ENCODES, train_rows=80, kind=kind, held_out=held_out).promote_if
        assert found is not None
        return found.metric

    assert [resolved(metric, None) for metric in ("", *figures)] == [figures[0], *figures]
    for other in {"exact_match", "macro_f1", "spearman"} - set(figures):
        with pytest.raises(InvalidField, match=f"is '{other}'; .* measures {', '.join(figures)}"):
            resolved(other, None)
    if kind is RowKind.PAIR:
        assert resolved("", RowKind.SCORED_PAIR) == "spearman"
