"""A head that trains, and one over features that never change, with its loss (`training/loop.py` trains it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.adapters.head import CLASSIFIER, HEAD_KEY, Head, Problem
from finetuned_service.adapters.layouts.head import BIAS, HEAD_TYPE, WEIGHT
from finetuned_service.bases.device import CPU
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.heads.unit import Unit
from finetuned_service.training.methods import Installed

_WEIGHT, _BIAS = f"{CLASSIFIER}.{WEIGHT}", f"{CLASSIFIER}.{BIAS}"


class TrainedHead:
    """The parameters of a head. They begin at zero: before the first step every answer is equally likely, or every number
    the mean. Numbers are learnt in their unit; the files of an adapter have the same head as it answers, in numbers.
    """

    def __init__(
        self,
        head: Head,
        width: int,
        weights: Sequence[float] | None = None,
        unit: Unit | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Args:
        head: what its outputs mean.
        width: of what it reads.
        weights: how much each output counts in the loss; None for all alike.
        unit: of the numbers; None takes them as they are.
        device: where all of it lies.
        """
        self._head, self._unit = head, unit or Unit()
        self._weights = None if weights is None else torch.tensor(weights, device=device)
        self.weight = nn.Parameter(torch.zeros(head.outputs, width, device=device))
        """`[outputs, width]`, float32, as `bias [outputs]`."""
        self.bias = nn.Parameter(torch.zeros(head.outputs, device=device))

    def outputs(self, vectors: Tensor) -> Tensor:
        """`[N, outputs]` of vectors `[N, width]` in float32; of numbers in their unit."""
        return functional.linear(vectors, self.weight, self.bias)

    def loss(self, outputs: Tensor, rows: Sequence[Example]) -> Tensor:
        """Summed over the rows, of which `outputs` gave `[N, outputs]`; a scalar."""
        targets = targets_of(rows, self._head, outputs.device, self._unit)
        return summed_loss(outputs, targets, self._head.problem, self._weights)

    def beside(self, method: Installed) -> Installed:
        """What trains, of a method that has this head: both."""
        config = {**method.config, HEAD_KEY: self._head.model_dump(mode="json")}
        classifier = {_WEIGHT: self.weight, _BIAS: self.bias}
        return replace(method, parameters={**method.parameters, **classifier}, config=config)

    def stored(self, installed: Installed) -> Installed:
        """What the files hold of what `beside` gave: it answers in numbers."""
        unit = self._unit
        if unit == Unit():
            return installed
        with torch.no_grad():
            weight = nn.Parameter((self.weight.double() * unit.spread).float())
            bias = nn.Parameter((self.bias.double() * unit.spread + unit.mean).float())
        return replace(installed, parameters={**installed.parameters, _WEIGHT: weight, _BIAS: bias})

    @torch.no_grad()
    def take_stored(self) -> None:
        """The parameters are what files hold: go on with them in the unit."""
        unit = self._unit
        self.weight.copy_(self.weight.double() / unit.spread)
        self.bias.copy_((self.bias.double() - unit.mean) / unit.spread)


class HeadModel:
    """See `training.loop.Trainable`."""

    dtype = torch.float32

    def __init__(
        self,
        head: Head,
        features: Mapping[int, Tensor],
        weights: Sequence[float] | None = None,
        unit: Unit | None = None,
    ) -> None:
        """Args:
        head: what its outputs mean.
        features: float32, by the examples' numbers; see `features.py`.
        weights: see `TrainedHead`.
        unit: see `TrainedHead`.
        """
        self._features = features
        self.head = TrainedHead(head, next(iter(features.values())).shape[1], weights, unit)
        self.installed = self.head.beside(Installed({}, config={"peft_type": HEAD_TYPE}))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in the adapter's file, without its prefix."""
        yield from self.installed.parameters.items()

    def outputs_of(self, rows: Sequence[Example]) -> Tensor:
        """See `measure.Answering`."""
        return self.head.outputs(torch.cat([self._features[row.number] for row in rows]))

    def loss_of(self, rows: Sequence[Example], scale: float) -> Tensor:
        """`scale` times the summed loss of the rows; a scalar."""
        return scale * self.head.loss(self.outputs_of(rows), rows)

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Nothing behaves otherwise in training."""


def targets_of(
    rows: Sequence[Example], head: Head, device: torch.device = CPU, unit: Unit | None = None
) -> Tensor:
    """`[N]` int64 of indices; `[N, labels]` of flags; or `[N, 1]` of numbers, as they are or in a unit."""
    if head.problem is Problem.SINGLE_LABEL:
        return torch.tensor([int(target) for row in rows for target in row.targets], device=device)
    if head.problem is Problem.REGRESSION and unit is not None:
        told = [[unit.told(target) for target in row.targets] for row in rows]
        return torch.tensor(told, dtype=torch.float32, device=device)
    return torch.tensor([row.targets for row in rows], dtype=torch.float32, device=device)


def summed_loss(outputs: Tensor, targets: Tensor, problem: Problem, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats; for several labels binary cross-entropy, a mean over labels; for numbers the square
    of the error. `weights [outputs]` are torch's `weight` and `pos_weight`; the sum is not divided by them.
    """
    match problem:
        case Problem.SINGLE_LABEL:
            return functional.cross_entropy(outputs, targets, weights, reduction="sum")
        case Problem.MULTI_LABEL:
            losses = functional.binary_cross_entropy_with_logits(
                outputs, targets, reduction="none", pos_weight=weights
            )
            return losses.mean(1).sum()
        case Problem.REGRESSION:
            return (outputs - targets).square().sum()
