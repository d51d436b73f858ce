"""NF4: 4-bit weights as bitsandbytes stores them, and the module that computes with them.

A weight `[out, in]` is cut in row order into blocks of 64 weights with one scale each; where `in` is no multiple of 64
a block goes on from one row into the next. Two things that bitsandbytes 0.50 does on CPUs are not done here:

- Where `in` is a multiple of 16, its AVX512 kernel looks for the scales of row r from number `r * (in // 64)` on. That is
  where they are only if `in` is a multiple of 64; else later rows get other blocks' scales, without an error.
- Its `Linear4bit` rewrites its weight in place at its first forward in eval mode, where the CPU has AVX512-BF16. What
  trains through a rewritten weight loses most of its gradient, without an error.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finetuned_service.bases.product import FrozenProduct


@torch.no_grad()
def dequantize_blocks(packed: Tensor, state: QuantState) -> Tensor:
    """The weight `[out, in]` that 4-bit values stand for, in the dtype that it was stored from.

    Args:
        packed: uint8, two values each, the first in the high half; in row order.
        state: scales of the blocks, and the weight's shape and dtype.
    """
    known: Any = state  # bitsandbytes' annotation leaves all of it open
    shape, block = torch.Size(known.shape), int(known.blocksize)
    elements = shape.numel()
    # As a matrix with a block in each row, in which the kernel finds every scale; with a last block that is shorter,
    # as a single row.
    by_block = copy.copy(state)
    by_block.shape = torch.Size((1, elements) if elements % block else (elements // block, block))
    return dequantize_4bit(packed, by_block).reshape(shape)


class Nf4Linear(nn.Linear):
    """`nn.Linear` on a 4-bit weight: `y = x · Wᵀ + bias` in x's dtype. W is unpacked for each product and its gradient.

    A subclass because everything that adapts a model looks for `nn.Linear`. Its weight is bitsandbytes' own parameter,
    which carries its scales, is never written, and stays mapped from its file.
    """

    def __init__(self, stored: Linear4bit) -> None:
        has_bias = stored.bias is not None  # pyright: ignore[reportUnnecessaryComparison]  # torch's annotation leaves None out
        super().__init__(stored.in_features, stored.out_features, bias=has_bias, device="meta")
        self.weight = stored.weight
        if has_bias:
            self.bias = stored.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        """`[..., in_features]` to `[..., out_features]`, dtype kept."""
        outputs: Tensor = FrozenProduct.apply(input, self.unpacked, self.bias)
        return outputs

    def unpacked(self) -> Tensor:
        """W, `[out, in]`."""
        weight: Any = self.weight
        return dequantize_blocks(weight, weight.quant_state)


def replace_4bit(model: nn.Module) -> None:
    """Put an `Nf4Linear` in the place of every `Linear4bit`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            model.set_submodule(name, Nf4Linear(module))
