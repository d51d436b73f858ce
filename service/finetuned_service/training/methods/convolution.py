"""A convolution with its low-rank update, as PEFT has it: A is a convolution of the same kernel, stride and padding to
r channels, B one of a single point from r to all. Decomposed (DoRA, Liu et al. 2024), the kernels of each output get a
length of their own, as the rows of a matrix do in `dora.py`.

Parameters are float32 and products run in the base's dtype, as in `lora.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.engine.adapter_weights import adapted_row_lengths
from finetuned_service.engine.module_change import low_rank


class LoraConvolution(nn.Module):
    """Takes the place of a frozen `nn.Conv2d` whose outputs each read all inputs.

    Args:
        base: weight `[out, in, rows, columns]`.
        rank: channels between A and B.
        scaling: alpha / rank, or alpha / sqrt(rank).
        dropout: probability with which elements of the update's input are zeroed in training.
        decomposed: it is DoRA.
    """

    def __init__(
        self, base: Any, *, rank: int, scaling: float, dropout: float = 0.0, decomposed: bool = False
    ) -> None:
        super().__init__()
        self.base: nn.Conv2d = base
        self.scaling = scaling
        self.dropout = dropout
        out_channels, *kernel = base.weight.shape
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        self.lora_a = nn.Parameter(torch.empty(rank, *kernel, dtype=dtype))
        # As in PEFT: B is zero, so that training starts from the base itself.
        self.lora_b = nn.Parameter(torch.zeros(out_channels, rank, 1, 1, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.magnitude: nn.Parameter | None = None
        if decomposed:
            self.magnitude = nn.Parameter(self._lengths().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x: `[N, in, rows, columns]`; returns `[N, out, ...]` in the dtype of x."""
        dropped = functional.dropout(x, self.dropout, self.training)
        update = low_rank(self.base, dropped, self.lora_a.to(x.dtype), self.lora_b.to(x.dtype))
        outputs: Tensor = self.base(x)
        if self.magnitude is None:
            return outputs + update * self.scaling
        gain = (self.magnitude / self._lengths()).to(x.dtype)
        product = functional.conv2d(
            dropped, self.base.weight, stride=self.base.stride, padding=self.base.padding
        )
        return outputs + (gain - 1) * product + gain * update * self.scaling

    def _lengths(self) -> Tensor:
        """`[1, out, 1, 1]`; a constant in the backward pass."""
        weight = self.base.weight
        a, b = self.lora_a.detach().to(weight.device), self.lora_b.detach().to(weight.device)
        return adapted_row_lengths(weight, a, b, self.scaling)[None, :, None, None]
