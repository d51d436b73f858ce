"""A linear module with its decomposed low-rank update (DoRA, Liu et al. 2024).

y = m / |W + scaling * B A| * (W + scaling * B A) x + bias, the length of each row taken as a constant in the
backward pass (section 4.3 of the paper). Parameters are float32 and products run in the base's dtype, as in `lora.py`.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.bases.load import dense_weight
from finetuned_service.bases.product import FrozenProduct
from finetuned_service.engine.adapter_weights import adapted_row_lengths


class DoraLinear(nn.Module):
    """Takes the place of a frozen `nn.Linear`; arguments as of `LoraLinear`."""

    def __init__(self, base: nn.Linear, *, rank: int, scaling: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        self.dropout = dropout
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        # B is zero: the lengths of W's own rows, so that training starts from the base itself.
        self.magnitude = nn.Parameter(self._lengths().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]; returns [..., out] in the dtype of x."""
        x = functional.dropout(x, self.dropout, self.training)
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        product: Tensor = FrozenProduct.apply(x, partial(dense_weight, self.base), None)
        product = product + functional.linear(functional.linear(x, a) * self.scaling, b)
        gain = (self.magnitude / self._lengths()).to(x.dtype)
        out = product * gain
        # torch's annotation leaves None out.
        return out if self.base.bias is None else out + self.base.bias  # pyright: ignore[reportUnnecessaryComparison]

    def _lengths(self) -> Tensor:
        weight = dense_weight(self.base)
        # Where the base is on a GPU, the parameters are made before they go there.
        a, b = self.lora_a.detach().to(weight.device), self.lora_b.detach().to(weight.device)
        return adapted_row_lengths(weight, a, b, self.scaling)
