"""An adapter in memory: what only has to be put where the running path reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetuned_service.adapters.site_ops import (
    AddLowRank,
    ScaleInput,
    ScaleOutput,
    ScaleRows,
    SiteOp,
    SubstituteParameter,
)
from finetuned_service.engine.lora_bank import LoraWeights

CHUNK_ELEMENTS = 2**22
"""Of a weight whose row lengths are measured: 16 MiB in float32 at a time."""


@dataclass(frozen=True, slots=True)
class ScaleProduct:
    """What ScaleRows becomes for the base in memory: each output without its bias is scaled."""

    gain: Tensor
    """`[out]`."""

    def over(self, read: Callable[[Tensor], Tensor]) -> ScaleProduct:
        return ScaleProduct(read(self.gain))


LoadedOp = SiteOp[Tensor] | ScaleProduct
"""What happens at a site beside its low-rank update."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """An adapter read, checked and converted to the base's dtype, all finite."""

    digest: str
    lora: LoraWeights
    modules: int
    """Of the base that it changes; those that share a parameter are one."""
    ops: Mapping[str, tuple[LoadedOp, ...]] = field(default_factory=dict[str, tuple[LoadedOp, ...]])
    """By the full name of the module: everything but low-rank updates."""

    @property
    def ops_bytes(self) -> int:
        tensors = (tensor for ops in self.ops.values() for op in ops for tensor in tensors_of(op))
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    @property
    def size_bytes(self) -> int:
        return self.lora.size_bytes + self.ops_bytes


def tensors_of(op: LoadedOp) -> Iterator[Tensor]:
    """The arrays of an op."""
    for field_of_op in dataclasses.fields(op):
        value = getattr(op, field_of_op.name)
        if isinstance(value, Tensor):
            yield value


@torch.no_grad()
def adapted_row_lengths(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The length of each row of `weight + scaling * b a`, in float32 or wider.

    Args:
        weight: `[out, in]`, or of a convolution.
        a: `[r, in]`, alike.
        b: `[out, r]`, alike.
        scaling: of the update.
    """
    # What an output of a convolution sees at one place is a row.
    weight, a, b = (part.flatten(1) for part in (weight, a, b))
    exact = torch.promote_types(torch.promote_types(weight.dtype, b.dtype), torch.float32)
    a = a.to(exact)
    rows = max(1, CHUNK_ELEMENTS // weight.shape[1])
    parts = [
        torch.addmm(part.to(exact), update.to(exact), a, alpha=scaling).norm(dim=1)
        for part, update in zip(weight.split(rows), b.split(rows), strict=True)
    ]
    return torch.cat(parts)


def load_op(op: SiteOp[Tensor], update: AddLowRank[Tensor] | None, weight: Tensor | None) -> LoadedOp:
    """A stored op as it is computed; `update` is the module's low-rank update and `weight` its own."""
    if isinstance(op, ScaleInput | ScaleOutput):
        return op.over(torch.flatten)  # PEFT keeps a row or a column
    if isinstance(op, SubstituteParameter):
        return SubstituteParameter(op.parameter, op.value.T.contiguous(), op.tied) if op.turned else op
    if not isinstance(op, ScaleRows):
        return op
    assert update is not None, "a DoRA layout has A and B wherever it has a magnitude"
    assert weight is not None, "its base's weight is in memory"
    lengths = adapted_row_lengths(weight, update.a, update.b, update.scaling)
    return ScaleProduct(op.magnitude.flatten().to(lengths.dtype) / lengths)
