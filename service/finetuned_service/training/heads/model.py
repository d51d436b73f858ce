"""A head over features that never change, and its loss (`training/loop.py` trains it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.adapters.head import CLASSIFIER, Head, Problem
from finetuned_service.adapters.layouts.head import BIAS, HEAD_KEY, HEAD_TYPE, WEIGHT
from finetuned_service.bases.device import CPU
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.methods import Installed


class HeadModel:
    """See `training.loop.Trainable`. Its weights begin at zero: before the first step every answer is equally likely, or
    every number the same.
    """

    def __init__(
        self,
        head: Head,
        features: Mapping[int, Tensor],
        weights: Sequence[float] | None = None,
        beginning: float = 0.0,
    ) -> None:
        """Args:
        head: what its outputs mean.
        features: float32, by the examples' numbers; see `features.py`.
        weights: how much each output counts in the loss; None for all alike.
        beginning: of the bias; see `HeadData`.
        """
        self._head, self._features = head, features
        self._weights = None if weights is None else torch.tensor(weights)
        self.weight, self.bias = empty_head(head, next(iter(features.values())).shape[1], beginning=beginning)
        alone = Installed({}, config={"peft_type": HEAD_TYPE})
        self.installed = beside_head(alone, self.weight, self.bias, head)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in the adapter's file, without its prefix."""
        yield from self.installed.parameters.items()

    def loss_of(self, rows: Sequence[Example], scale: float) -> Tensor:
        """`scale` times the summed loss of the rows; a scalar."""
        inputs = torch.cat([self._features[row.number] for row in rows])
        outputs = functional.linear(inputs, self.weight, self.bias)
        return scale * summed_loss(outputs, targets_of(rows, self._head), self._head.problem, self._weights)

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Nothing behaves otherwise in training."""


def empty_head(
    head: Head, width: int, device: torch.device = CPU, beginning: float = 0.0
) -> tuple[nn.Parameter, nn.Parameter]:
    """`[outputs, width]` at zero and `[outputs]` at `beginning`, on the device."""
    weight = torch.zeros(head.outputs, width, device=device)
    bias = torch.full((head.outputs,), beginning, device=device)
    return nn.Parameter(weight), nn.Parameter(bias)


def beside_head(method: Installed, weight: nn.Parameter, bias: nn.Parameter, head: Head) -> Installed:
    """What the files of an adapter hold that is a method's and has a head."""
    classifier = {f"{CLASSIFIER}.{WEIGHT}": weight, f"{CLASSIFIER}.{BIAS}": bias}
    config = {**method.config, HEAD_KEY: head.model_dump(mode="json")}
    return Installed({**method.parameters, **classifier}, method.switched, config)


def targets_of(rows: Sequence[Example], head: Head, device: torch.device = CPU) -> Tensor:
    """`[N]` int64 of indices; `[N, labels]` of flags; or `[N, 1]` of numbers."""
    if head.problem is Problem.SINGLE_LABEL:
        return torch.tensor([int(target) for row in rows for target in row.targets], device=device)
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
