"""A convolution with its low-rank update, as PEFT has it: A is a convolution of the same kernel, stride and padding to
r channels, B one of a single point from r to all.

Parameters are float32 and products run in the base's dtype, as in `lora.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.engine.module_change import low_rank


class LoraConvolution(nn.Module):
    """Takes the place of a frozen `nn.Conv2d` whose outputs each read all inputs.

    Args:
        base: weight `[out, in, rows, columns]`.
        rank: channels between A and B.
        scaling: alpha / rank, or alpha / sqrt(rank).
        dropout: probability with which elements of the update's input are zeroed in training.
    """

    def __init__(self, base: Any, *, rank: int, scaling: float, dropout: float = 0.0) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """x: `[N, in, rows, columns]`; returns `[N, out, ...]` in the dtype of x."""
        dropped = functional.dropout(x, self.dropout, self.training)
        update = low_rank(self.base, dropped, self.lora_a.to(x.dtype), self.lora_b.to(x.dtype))
        outputs: Tensor = self.base(x)
        return outputs + update * self.scaling
