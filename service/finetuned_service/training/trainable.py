"""What the loop needs of what it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn


class TrainRow(Protocol):
    """A row as the loop counts it."""

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def supervised_tokens(self) -> int:
        """Over how many the loss is a mean: tokens, where nothing else is said."""
        ...


R = TypeVar("R", bound=TrainRow)
R_contra = TypeVar("R_contra", bound=TrainRow, contravariant=True)


class Parameters(Protocol):
    """What checkpoints keep."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable ones, always in the same order."""
        ...


class Trainable(Parameters, Protocol[R_contra]):
    """A frozen base with something that trains."""

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes, and its gradients pass through it; those of the parameters are at least float32."""
        ...

    def loss_of(self, rows: Sequence[R_contra], scale: float) -> Tensor:
        """`scale` times the summed loss of the rows; a scalar."""
        ...

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Switch what behaves otherwise in training."""
        ...
