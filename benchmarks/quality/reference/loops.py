"""transformers' Trainer and a plain loop, with the batches and the rates of the run that they repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from benchmarks.quality.order import Order
from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.packed import rest
from benchmarks.quality.reference.trained import QUIET, Clock, Trained


class Objective(Protocol):
    """What is learnt, with a model that learns it."""

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """A mean over what the rows supervise, with a gradient."""
        ...

    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """As `scores.py` takes them."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """The steps of an order that is repeated."""

    options: Mapping[str, Any]
    """Optimization, as the spec has it."""
    learning_rates: Sequence[float]
    batches: list[list[Row]]

    @classmethod
    def of(cls, order: Order, rows: Sequence[Row]) -> Run:
        """Of rows in the order of their file."""
        batches = [[rows[place] for place in step] for step in order.batches]
        return cls(order.spec["optimization"], order.learning_rates, batches)


def adamw(parameters: Mapping[str, nn.Parameter], options: Mapping[str, Any]) -> torch.optim.AdamW:
    """With the peaks of the rates: of a head, and of what else trains."""
    rate = options["learning_rate"]
    head_rate = options["head_learning_rate"] or rate
    heads: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        (heads if name.startswith("classifier.") else others).append(parameter)
    # Two groups at most: AdamW computes one at a time.
    groups = [{"params": others, "lr": rate}, {"params": heads, "lr": head_rate}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=options["weight_decay"]
    )


def plain_loop(
    run: Run, objective: Objective, parameters: Mapping[str, nn.Parameter], began: float
) -> Trained:
    """AdamW, clipped gradients. `began` is the time of `perf_counter` from which seconds count, 0 for now."""
    trained = Trained()
    optimizer = adamw(parameters, run.options)
    schedule = scheduled(optimizer, run.learning_rates, run.options["learning_rate"])
    began = began or time.perf_counter()
    for rows in run.batches:
        loss = objective.loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), run.options["max_gradient_norm"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        trained.losses.append(loss.item())
    trained.seconds = time.perf_counter() - began
    return trained


class Learner(nn.Module):
    """What transformers' Trainer calls: rows to a loss. Dropout stays off unless it is asked for."""

    def __init__(self, objective: Objective, modules: Sequence[nn.Module], *, dropout: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self._loss: Callable[[Sequence[Row]], Tensor] = objective.loss
        self._dropout = dropout

    def forward(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return {"loss": self._loss(rows)}

    def train(self, mode: bool = True) -> Learner:  # noqa: FBT001, FBT002 - as nn.Module.train
        super().train(mode)
        if not (mode and self._dropout):
            rest(self)
        return self


class Recorded(Trainer):
    """transformers' Trainer, with every step's loss unrounded."""

    trained: Trained

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        loss: Tensor = model(inputs["rows"])["loss"]
        self.trained.losses.append(loss.item())
        return loss


def scheduled(optimizer: torch.optim.Optimizer, rates: Sequence[float], peak: float) -> LambdaLR:
    """The rate of every step as it is told, of a group that was made with `peak`, and of others in proportion; after the
    last, the last one.
    """
    return LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)] / peak)


def transformers_loop(
    run: Run, learner: Learner, parameters: Mapping[str, nn.Parameter], directory: str
) -> Trained:
    """The Trainer of transformers on the same batches at the same rates."""
    options, peak = run.options, run.options["learning_rate"]
    optimizer = adamw(parameters, options)
    return train(
        learner,
        [row for batch in run.batches for row in batch],
        directory,
        optimizers=(optimizer, scheduled(optimizer, run.learning_rates, peak)),
        train_sampling_strategy="sequential",
        max_steps=len(run.batches),
        per_device_train_batch_size=options["batch_rows"],
        max_grad_norm=options["max_gradient_norm"],
    )


def train(
    learner: Learner, rows: Sequence[Row], directory: str, optimizers: Any = (None, None), **arguments: Any
) -> Trained:
    """The Trainer of transformers with `arguments` of its TrainingArguments."""
    trained = Trained()
    trainer = Recorded(
        model=learner,
        args=TrainingArguments(output_dir=directory, remove_unused_columns=False, **QUIET, **arguments),
        data_collator=lambda batch: {"rows": batch},
        train_dataset=_Rows(rows),
        optimizers=optimizers,
        callbacks=[Clock(trained)],
    )
    trainer.trained = trained
    trainer.train()
    return trained


class _Rows(torch.utils.data.Dataset[Row]):
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        yield from self._rows
