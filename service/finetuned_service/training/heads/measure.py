"""Held-out rows between steps: one forward pass of the model that trains gives their loss and their task's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetuned_service.adapters.head import Head
from finetuned_service.training.heads.evaluate import Outputs, scored
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.heads.model import TrainedHead
from finetuned_service.training.heads.unit import Unit
from finetuned_service.training.loop import EVALUATION_ROWS, HeldOut
from finetuned_service.training.order import micro_batches


class Answering(Protocol):
    """What ends in a head that trains."""

    head: TrainedHead

    def outputs_of(self, rows: Sequence[Example]) -> Tensor:
        """Of `TrainedHead.outputs`: a row for each input, or for each of its places, in their order."""
        ...

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Switch what behaves otherwise in training."""
        ...


@torch.no_grad()
def measure(model: Answering, head: Head, unit: Unit, rows: Sequence[Example]) -> HeldOut:
    """The mean loss of the rows, in the unit and with the weights of training, and the figures of the head's task.

    Args:
        model: as it trains.
        head: what its outputs mean.
        unit: of its outputs.
        rows: at least one.
    """
    scale = 1.0 / sum(row.supervised_tokens for row in rows)
    parts = micro_batches(rows, EVALUATION_ROWS)
    loss, answers = 0.0, Outputs()
    model.train(mode=False)
    for part in parts:
        outputs = model.outputs_of(part)
        loss += (scale * model.head.loss(outputs, part)).item()
        answers += _answers(outputs, part, unit)
    model.train(mode=True)
    figures = scored(answers, [row for part in parts for row in part], head, unit).metrics
    # The loss among them has no weights, as what is served has none.
    return HeldOut(loss, tuple(figure for figure in figures if figure.name != "loss"))


def _answers(outputs: Tensor, rows: Sequence[Example], unit: Unit) -> Outputs:
    """What the head answers to each of the rows once it is stored: numbers as they are."""
    numbers = (outputs.double() * unit.spread + unit.mean).float().cpu()
    return [part.numpy() for part in numbers.split([row.supervised_tokens for row in rows])]
