"""What an adapter does to its base, as plain values that training, files and engine share. No torch.

An adapter is a set of site ops at named modules of the base, whatever the method that trained it. An op
holds its arrays as `T`: the names of tensors where files are checked, tensors where they are computed with.

At one linear module, `y = W x + bias` becomes, in this order:

    ScaleInput    x is scaled before W and before A
    AddLowRank    scaling * B A x is added
    ScaleRows     the product without the bias is scaled, so that the rows of W + scaling * B A get the
                  lengths given (DoRA)
    ScaleOutput   y is scaled, its bias with it

At any module, SubstituteParameter puts a parameter of the adapter in the place of the base's. At a layer or at one of
its two sublayers (attention, feed-forward), MapOutput adds to what it returns.

And what an input became, which is what the base tells of it, becomes other outputs:

    Project       W y + bias, the adapter's own W and bias
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class ScaleInput(Generic[T]):
    """IA3 in front of a feed-forward's last product (Liu et al. 2022)."""

    gain: T
    """`[in]`."""

    def over(self, read: Callable[[T], U]) -> ScaleInput[U]:
        return ScaleInput(read(self.gain))


@dataclass(frozen=True, slots=True)
class AddLowRank(Generic[T]):
    """LoRA (Hu et al. 2021)."""

    a: T
    """`[r, in]`; at a convolution `[r, in, rows, columns]`, of its stride and padding."""
    b: T
    """`[out, r]`; at a convolution `[out, r, 1, 1]`."""
    scaling: float

    def over(self, read: Callable[[T], U]) -> AddLowRank[U]:
        return AddLowRank(read(self.a), read(self.b), self.scaling)


@dataclass(frozen=True, slots=True)
class ScaleRows(Generic[T]):
    """DoRA (Liu et al. 2024). Which factor it is depends on the base's weight, so it is found at load."""

    magnitude: T
    """`[out]`: the length of each row of the adapted weight; of each output's kernels at a convolution, where it is
    `[1, out, 1, 1]`.
    """

    def over(self, read: Callable[[T], U]) -> ScaleRows[U]:
        return ScaleRows(read(self.magnitude))


@dataclass(frozen=True, slots=True)
class ScaleOutput(Generic[T]):
    """IA3 elsewhere, for example at keys and values."""

    gain: T
    """`[out]`."""

    def over(self, read: Callable[[T], U]) -> ScaleOutput[U]:
        return ScaleOutput(read(self.gain))


@dataclass(frozen=True, slots=True)
class Project(Generic[T]):
    """A head."""

    weight: T
    """`[outputs, width]`."""
    bias: T
    """`[outputs]`."""

    def over(self, read: Callable[[T], U]) -> Project[U]:
        return Project(read(self.weight), read(self.bias))


@dataclass(frozen=True, slots=True)
class SubstituteParameter(Generic[T]):
    """A parameter of the module, whole: what a difference in 16 bits could not give exactly."""

    parameter: str
    """Its name in the module: `weight` or `bias`."""
    value: T
    """In the shape that the module computes with, unless `turned`."""
    tied: tuple[str, ...] = ()
    """Other modules of the base that share it, and get it too: a head that is the embedding."""
    turned: bool = False
    """The value lies as [in, out]; the module computes with [out, in]."""

    def over(self, read: Callable[[T], U]) -> SubstituteParameter[U]:
        return SubstituteParameter(self.parameter, read(self.value), self.tied, self.turned)


class Activation(StrEnum):
    """The nonlinearity of a bottleneck."""

    RELU = "RELU"
    GELU = "GELU"
    SILU = "SILU"


@dataclass(frozen=True, slots=True)
class MapOutput(Generic[T]):
    """A bottleneck: `scaling * (up act(down h + down_bias) + up_bias)` is added to what the module returns.

    h is that output, or the module's input if it is `parallel`. A sublayer's output is not yet added to the
    residual stream, a layer's is. Sources: Houlsby et al. 2019, Pfeiffer et al. 2021, He et al. 2022 (parallel).
    """

    down: T
    """`[width, hidden]`."""
    down_bias: T
    """`[width]`."""
    up: T
    """`[hidden, width]`."""
    up_bias: T
    """`[hidden]`."""
    activation: Activation
    scaling: float
    parallel: bool

    def over(self, read: Callable[[T], U]) -> MapOutput[U]:
        return MapOutput(
            read(self.down),
            read(self.down_bias),
            read(self.up),
            read(self.up_bias),
            self.activation,
            self.scaling,
            self.parallel,
        )


SiteOp = (
    ScaleInput[T]
    | AddLowRank[T]
    | ScaleRows[T]
    | ScaleOutput[T]
    | Project[T]
    | SubstituteParameter[T]
    | MapOutput[T]
)
