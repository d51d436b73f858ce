"""The reference: transformers' Trainer with PEFT where PEFT has the method, else a plain PyTorch loop. Where TRL has
the task and PEFT the method, `trl_worker.py` is the reference instead.

Settings: none. Command: {"order": ORDER} is answered with an OUTCOME (`order.py`). With `tuned` in the order it
trains as its users would; else it repeats the run of the order's spec, batch by batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertModel, LlamaForCausalLM, ResNetModel, set_seed

from benchmarks.peers.worker import Answer, Command, Settings, answer
from benchmarks.quality.alone import Mark, alone
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.reference import rows as made
from benchmarks.quality.reference.answers import Answering
from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.labels import LABELS, SCORE, Labelling, balance, classes, told_by
from benchmarks.quality.reference.linear import linear_model
from benchmarks.quality.reference.loops import Learner, Objective, Run, plain_loop, transformers_loop
from benchmarks.quality.reference.model import GENERATION, IMAGES, load, put_method
from benchmarks.quality.reference.packed import rest
from benchmarks.quality.reference.preferences import Preferring, asked_before
from benchmarks.quality.reference.texts import Likening, Pairing
from benchmarks.quality.reference.trained import Trained, outcome
from benchmarks.quality.reference.tuned import tuned_loop, with_method

PEFT = frozenset({"LORA", "QLORA", "IA3"})
PRELOADED = (BertModel, LlamaForCausalLM, ResNetModel)
"""Modules that transformers would import at the first use, in every child anew."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A base with a method on it, and rows."""

    objective: Objective
    trained: dict[str, nn.Parameter]
    modules: list[nn.Module]
    train: list[Row]
    test: list[Row]


def start(_settings: Settings) -> Answer:
    def handle(command: Command) -> Mapping[str, Any]:
        order = Order(**command["order"])
        return alone(lambda mark: _run(order, mark).as_json())

    return handle


def _run(order: Order, mark: Mark) -> Outcome:
    torch.set_num_threads(order.threads)
    task = order.spec["task"]
    began = time.perf_counter() if order.spec["method"] == "HEAD" and task != GENERATION else 0.0
    model = load(Path(order.base), task, dropout=bool(order.tuned))
    mark()
    prepared = _prepare(order, model)
    learnt = (_tuned if order.tuned else _repeated)(order, prepared, began)
    mark()
    for module in prepared.modules:
        rest(module)
    dtype = model.dtype if task == GENERATION else torch.float32
    predictions = prepared.objective.predictions(prepared.test)
    return outcome(order, learnt, prepared.trained, dtype, predictions)


def _prepare(order: Order, model: Any) -> Prepared:
    return (_prepare_answers if order.spec["task"] == GENERATION else _prepare_encoder)(order, model)


def _prepare_answers(order: Order, model: Any) -> Prepared:
    spec, rows = order.spec, json.loads(Path(order.encoded).read_text())
    train, test = rows["train"], rows["test"]
    prefers = spec["objective"] == "DPO"
    if prefers:
        train, test = asked_before(model, train), asked_before(model, test)
    model, trained = put_method(model, spec, load_file(order.initial))
    if prefers:
        return Prepared(Preferring(model, spec["dpo"]["beta"]), trained, [model], train, test)
    objective = Answering(model, Path(order.base), rows["prompts"] if order.generates else [])
    return Prepared(objective, trained, [model], train, test)


def _prepare_encoder(order: Order, model: Any) -> Prepared:
    spec, base = order.spec, Path(order.base)
    trained: dict[str, nn.Parameter] = {}
    if order.tuned and spec["method"] != "HEAD":
        model, trained = with_method(model, spec)
    elif order.initial:
        model, trained = put_method(model, spec, load_file(order.initial))
    raw_train, raw_test = made.raw(order.train), made.raw(order.test)
    if spec["task"] == "feature-extraction":
        train, test = made.pairs(base, raw_train), made.pairs(base, raw_test)
        scored = SCORE in raw_train[0]
        objective = Likening(model) if scored else Pairing(model, spec["contrastive"]["scale"])
        return Prepared(objective, trained, [model], train, test)
    encode = {
        IMAGES: made.images,
        "text-classification": lambda rows: made.texts(base, rows),
        "token-classification": lambda rows: made.words(base, rows),
    }[spec["task"]]
    labels = classes(raw_train)
    width = model.config.hidden_sizes[-1] if spec["task"] == IMAGES else model.config.hidden_size
    head = nn.Linear(width, len(labels) or 1)
    told = told_by(raw_train)
    if not order.tuned:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    trained |= {f"classifier.{name}": parameter for name, parameter in head.named_parameters()}
    numbers = [row[SCORE] for row in raw_train] if told == SCORE else []
    unit = {"mean": fmean(numbers), "spread": pstdev(numbers)} if numbers else {}
    balanced = spec["classification"]["class_weights"] == "BALANCED" and told == LABELS
    weights = balance(raw_train, labels) if balanced else None
    labelling = Labelling(model, head, told, labels, weights=weights, **unit)
    return Prepared(labelling, trained, [model, head], encode(raw_train), encode(raw_test))


def _repeated(order: Order, prepared: Prepared, began: float) -> Trained:
    rows, objective = prepared.train, prepared.objective
    if began and isinstance(objective, Labelling):
        rows = objective.with_vectors(rows)
    run = Run.of(order, rows)
    if order.spec["method"] in PEFT and order.spec["task"] != IMAGES:
        learner = Learner(objective, prepared.modules, dropout=False)
        return transformers_loop(run, learner, prepared.trained, order.directory)
    return plain_loop(run, objective, prepared.trained, began)


def _tuned(order: Order, prepared: Prepared, began: float) -> Trained:
    objective, options = prepared.objective, order.spec["optimization"]
    if began and isinstance(objective, Labelling):
        return linear_model(objective, prepared.train, order.tuned)
    set_seed(options["seed"])
    return tuned_loop(
        objective,
        prepared.modules,
        prepared.train,
        order.tuned,
        batch_rows=options["batch_rows"],
        seed=options["seed"],
        directory=order.directory,
        # Images have none, and a small adapter would not keep what BatchNorm learns.
        dropout=order.spec["task"] != IMAGES or order.spec["method"] in {"LAYERS", "FULL"},
    )


if __name__ == "__main__":
    answer(start)
