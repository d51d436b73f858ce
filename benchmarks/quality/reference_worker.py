"""The reference: transformers' Trainer with PEFT where PEFT has the method, else a plain PyTorch loop.

Settings: none. Command: {"order": ORDER} is answered with an OUTCOME (`order.py`). With `tuned` in the order it
trains as its users would; else it repeats the run of the order's spec, batch by batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetuned_service.jobs.specs import TrainSpec
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertModel, LlamaForCausalLM, ResNetModel, set_seed

from benchmarks.peers.worker import Answer, Command, Settings, answer
from benchmarks.quality.alone import Mark, alone
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.reference import rows as made
from benchmarks.quality.reference.answers import Answering, Preferring
from benchmarks.quality.reference.labels import Labelling, classes
from benchmarks.quality.reference.loops import Learner, Objective, Run, plain_loop, transformers_loop
from benchmarks.quality.reference.model import GENERATION, IMAGES, load, put_method
from benchmarks.quality.reference.rows import Row
from benchmarks.quality.reference.texts import Pairing
from benchmarks.quality.reference.tuned import logistic_regression, tuned_loop, with_lora

PEFT = frozenset({"LORA", "IA3"})
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
    spec = TrainSpec.model_validate(order.spec)
    began = time.perf_counter() if spec.method == "HEAD" and spec.task != GENERATION else 0.0
    model = load(Path(order.base), spec.task, dropout=bool(order.tuned))
    mark()
    prepared = _prepare(order, model)
    learnt = (_tuned if order.tuned else _repeated)(order, spec, prepared, began)
    mark()
    file = Path(order.directory) / "trained.safetensors"
    dtype = model.dtype if spec.task == GENERATION else torch.float32
    save_file({name: p.detach().to(dtype).clone().contiguous() for name, p in prepared.trained.items()}, file)
    for module in prepared.modules:
        module.eval()
    return Outcome(
        learnt.losses,
        learnt.seconds,
        sum(parameter.numel() for parameter in prepared.trained.values()),
        file.stat().st_size,
        prepared.objective.predictions(prepared.test),
    )


def _prepare(order: Order, model: Any) -> Prepared:
    spec, base = order.spec, Path(order.base)
    raw_train, raw_test = made.raw(order.train), made.raw(order.test)
    trained: dict[str, nn.Parameter] = {}
    seed = spec["optimization"]["seed"]
    if order.tuned and spec["method"] == "LORA":
        model = with_lora(model, spec["lora"]["target_modules"], seed)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    elif order.initial:
        model, trained = put_method(model, spec, load_file(order.initial))
    if spec["task"] == GENERATION:
        return _of_answers(order, model, trained, raw_train, raw_test)
    if spec["task"] == "feature-extraction":
        train, test = made.pairs(base, raw_train), made.pairs(base, raw_test)
        return Prepared(Pairing(model, spec["contrastive"]["scale"]), trained, [model], train, test)
    encode = {
        IMAGES: made.images,
        "text-classification": lambda rows: made.texts(base, rows),
        "token-classification": lambda rows: made.words(base, rows),
    }[spec["task"]]
    labels = classes(raw_train)
    width = model.config.hidden_sizes[-1] if spec["task"] == IMAGES else model.config.hidden_size
    head = nn.Linear(width, len(labels))
    if not order.tuned:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    trained |= {f"classifier.{name}": parameter for name, parameter in head.named_parameters()}
    return Prepared(
        Labelling(model, head, labels), trained, [model, head], encode(raw_train), encode(raw_test)
    )


def _of_answers(
    order: Order,
    model: Any,
    trained: dict[str, nn.Parameter],
    raw_train: Sequence[Row],
    raw_test: Sequence[Row],
) -> Prepared:
    base = Path(order.base)
    if order.spec["objective"] == "DPO":
        rows = [made.preferences(base, part) for part in (raw_train, raw_test)]
        return Prepared(Preferring(model, order.spec["dpo"]["beta"]), trained, [model], *rows)
    prompts = made.questions(base, raw_test) if order.generates else []
    rows = [made.conversations(base, part) for part in (raw_train, raw_test)]
    return Prepared(Answering(model, base, prompts), trained, [model], *rows)


def _repeated(order: Order, spec: TrainSpec, prepared: Prepared, began: float) -> Any:
    rows, objective = prepared.train, prepared.objective
    if began and isinstance(objective, Labelling):
        rows = objective.with_vectors(rows)
    run = Run.of(spec, rows)
    if spec.method in PEFT and spec.task != IMAGES:
        learner = Learner(objective, prepared.modules, dropout=False)
        bf16 = any(p.dtype is torch.bfloat16 for p in learner.parameters())
        return transformers_loop(run, learner, order.directory, bf16=bf16)
    return plain_loop(run, objective, list(prepared.trained.values()), began)


def _tuned(order: Order, spec: TrainSpec, prepared: Prepared, began: float) -> Any:
    objective, seed = prepared.objective, spec.optimization.seed
    if began and isinstance(objective, Labelling):
        return logistic_regression(objective, prepared.train, order.tuned)
    set_seed(seed)
    return tuned_loop(
        objective,
        prepared.modules,
        prepared.train,
        order.tuned,
        batch_rows=spec.optimization.batch_rows,
        seed=seed,
        directory=order.directory,
        # Images have none, and BatchNorm would learn statistics that nothing keeps.
        dropout=spec.task != IMAGES,
    )


if __name__ == "__main__":
    answer(start)
