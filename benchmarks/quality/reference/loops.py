"""transformers' Trainer and a plain loop, with the batches and the rates of the run that they repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.order import RowOrder
from finetuned_service.training.schedule import Plan
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.quality.reference.rows import Row


class Objective(Protocol):
    """What is learnt, with a model that learns it."""

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """A mean over what the rows supervise, with a gradient."""
        ...

    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """As `scores.py` takes them."""
        ...


@dataclass(slots=True)
class Trained:
    """What was seen of training."""

    losses: list[float] = field(default_factory=list[float])
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """The steps of a resolved spec."""

    spec: TrainSpec
    plan: Plan
    batches: list[list[Row]]

    @classmethod
    def of(cls, spec: TrainSpec, rows: Sequence[Row]) -> Run:
        """Of rows in the order of their file."""
        plan = Plan.of(spec.optimization, spec.evaluation)
        order = RowOrder(len(rows), spec.optimization.batch_rows, spec.optimization.seed)
        batches = [[rows[i] for i in order.rows_of_step(step)] for step in range(plan.total_steps)]
        return cls(spec, plan, batches)


def plain_loop(run: Run, objective: Objective, parameters: Sequence[nn.Parameter], began: float) -> Trained:
    """AdamW, clipped gradients. `began` is the time of `perf_counter` from which seconds count, 0 for now."""
    trained, options = Trained(), run.spec.optimization
    optimizer = torch.optim.AdamW(parameters, weight_decay=options.weight_decay)
    began = began or time.perf_counter()
    for step, rows in enumerate(run.batches):
        for group in optimizer.param_groups:
            group["lr"] = run.plan.learning_rate(step)
        loss = objective.loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
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
        super().train(mode and self._dropout)
        return self


class Recorded(Trainer):
    """transformers' Trainer, with every step's loss unrounded."""

    trained: Trained

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        loss: Tensor = model(inputs["rows"])["loss"]
        self.trained.losses.append(loss.item())
        return loss


class _Clock(TrainerCallback):
    def __init__(self, trained: Trained) -> None:
        self._trained, self._began = trained, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trained.seconds = time.perf_counter() - self._began


def transformers_loop(run: Run, learner: Learner, directory: str, *, bf16: bool) -> Trained:
    """The Trainer of transformers on the same batches at the same rates."""
    options, peak = run.spec.optimization, run.plan.peak_learning_rate
    trainable = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=peak, weight_decay=options.weight_decay)
    schedule = LambdaLR(
        optimizer, lambda step: run.plan.learning_rate(min(step, run.plan.total_steps)) / peak
    )
    return train(
        learner,
        [row for batch in run.batches for row in batch],
        directory,
        optimizers=(optimizer, schedule),
        train_sampling_strategy="sequential",
        max_steps=run.plan.total_steps,
        per_device_train_batch_size=options.batch_rows,
        max_grad_norm=options.max_gradient_norm,
        bf16=bf16,
    )


def train(
    learner: Learner, rows: Sequence[Row], directory: str, optimizers: Any = (None, None), **arguments: Any
) -> Trained:
    """The Trainer of transformers with `arguments` of its TrainingArguments."""
    trained = Trained()
    trainer = Recorded(
        model=learner,
        args=TrainingArguments(
            output_dir=directory,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **arguments,
        ),
        data_collator=lambda batch: {"rows": batch},
        train_dataset=_Rows(rows),
        optimizers=optimizers,
        callbacks=[_Clock(trained)],
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
