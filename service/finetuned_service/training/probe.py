"""What a job will take, measured before its first step: a few of its own steps, undone to the last bit.

Memory comes from the step with the largest part, time from typical ones. A learning rate of zero moves no weight, and
what even that could change (the sign of a zero, torch's generators) is put back from a checkpoint, which is timed too.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetuned_service.errors import TrainingDiverged
from finetuned_service.jobs.memory import WATCH_INTERVAL_SECONDS
from finetuned_service.training.checkpoint import CheckpointStore
from finetuned_service.training.generators import generator_states, restore_generators
from finetuned_service.training.loop import EVALUATION_ROWS, Step, Trainer
from finetuned_service.training.schedule import Plan
from finetuned_service.training.trainable import TrainRow

LOOK_STEPS = 1000
"""Of so many steps the sizes are looked at, or of an epoch's where they are more: there every row is met."""
STEPS_FOR_ONE = 10
"""A typical step is measured for every so many of the job: the probe of a short job must not outlast it."""
MOST_SECONDS = 60.0
"""When typical steps have taken so long no further one is begun."""
LARGEST_SECONDS = 4 * WATCH_INTERVAL_SECONDS
"""So long is the largest step repeated: whoever watches the memory must see it."""
_MOST_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured."""

    steps: int
    """How many ran."""
    tokens: int
    """Of all steps of the job."""
    training_seconds: float
    """Expected for all steps of the job."""
    evaluation_seconds: float
    """Of one evaluation between steps; 0 without held-out rows."""
    checkpoint_seconds: float
    """Of writing one."""


def without_effect(plan: Plan) -> Plan:
    """The same steps with a learning rate of zero."""
    return replace(plan, peak_learning_rate=0.0, peak_head_learning_rate=0.0)


@contextmanager
def scratch_checkpoints(directory: Path) -> Generator[CheckpointStore]:
    """A store of checkpoints that goes with the block; one that a killed process left goes before."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        yield CheckpointStore(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def probe(trainer: Trainer[Any], typical_steps: int) -> Probed | None:
    """Measure a run that has not begun.

    Args:
        trainer: `without_effect`, with checkpoints of its own.
        typical_steps: at most so many, besides the largest one.

    Returns:
        None if the process was asked to stop, or a step's loss is not finite: the run itself says at which.
    """
    total = trainer.plan.total_steps
    looked = min(total, max(LOOK_STEPS, math.ceil(len(trainer.train_rows) / trainer.settings.batch_rows)))
    sizes = [_size(trainer.parts_of_step(step)) for step in range(looked)]
    tokens = round(sum(size.tokens for size in sizes) / len(sizes) * total)
    begun, generators = trainer.state, generator_states(trainer.model)
    trainer.checkpoints.save(begun, trainer.model, trainer.optimizer)
    few = total // STEPS_FOR_ONE

    def measured(steps: Sequence[int], most_seconds: float) -> list[Step]:
        """The first of the steps, and others until so much time is over."""
        begun_seconds, taken = time.perf_counter(), list[Step]()
        for step in steps:
            if trainer.stop.is_set() or (taken and time.perf_counter() - begun_seconds > most_seconds):
                break
            trainer.state = begun.model_copy(update={"step": step})
            taken.append(trainer.step())
        return taken

    try:
        _make_moments(trainer.optimizer)
        heavy = measured([_largest(sizes)] * (1 + min(few, _MOST_REPEATS)), LARGEST_SECONDS)
        typical = measured(_typical(sizes, min(typical_steps, few)), MOST_SECONDS)
        if trainer.stop.is_set():
            return None
        evaluation_seconds = _evaluation_seconds(trainer)
        checkpoint_seconds = _checkpoint_seconds(trainer)
    except TrainingDiverged:
        return None
    finally:
        trainer.state = begun
        trainer.optimizer.zero_grad()
        trainer.checkpoints.restore_parameters(begun.step, trainer.model)
        restore_generators(trainer.model, generators)
    # The first step of all warms up: kernels are chosen, memory is new.
    timed = typical or heavy[1:] or heavy
    seconds_per_token = sum(step.seconds for step in timed) / sum(step.tokens for step in timed)
    return Probed(
        len(heavy) + len(typical), tokens, tokens * seconds_per_token, evaluation_seconds, checkpoint_seconds
    )


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's two for each parameter: it makes them at its first step, and the largest may come later."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@dataclass(frozen=True, slots=True)
class _Size:
    tokens: int
    largest_part: int
    """Tokens of the largest part, and those with padding where its rows stand side by side."""


def _size(parts: Sequence[Sequence[TrainRow]]) -> _Size:
    lengths = [[len(row.token_ids) for row in part] for part in parts]
    return _Size(
        tokens=sum(map(sum, lengths)), largest_part=max(sum(part) + len(part) * max(part) for part in lengths)
    )


def _largest(sizes: Sequence[_Size]) -> int:
    return max(range(len(sizes)), key=lambda step: sizes[step].largest_part)


def _typical(sizes: Sequence[_Size], count: int) -> list[int]:
    """Steps from all over the range of sizes, each standing for as many."""
    ordered = sorted(range(len(sizes)), key=lambda step: sizes[step].tokens)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _evaluation_seconds(trainer: Trainer[Any]) -> float:
    """Of all held-out rows, from some of them."""
    rows = trainer.heldout_rows
    if not rows:
        return 0.0
    sample = rows[:: max(1, len(rows) // EVALUATION_ROWS)]
    started = time.perf_counter()
    trainer.measure(sample)
    seconds = time.perf_counter() - started
    return seconds * sum(len(row.token_ids) for row in rows) / sum(len(row.token_ids) for row in sample)


def _checkpoint_seconds(trainer: Trainer[Any]) -> float:
    started = time.perf_counter()
    trainer.checkpoints.save(
        trainer.state.model_copy(update={"step": trainer.state.step + 1}), trainer.model, trainer.optimizer
    )
    return time.perf_counter() - started
