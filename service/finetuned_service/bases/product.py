"""The product with a frozen weight that is stored packed: unpacked where it is needed, never kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, autograd
from torch.nn import functional


class FrozenProduct(autograd.Function):
    """`x · Wᵀ + bias`, differentiable in x. Autograd alone would hold every unpacked weight until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unpack: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """x: `[..., in]`; returns `[..., out]` in its dtype. `unpack` gives W `[out, in]`, once a pass."""
        ctx.unpack = unpack
        return functional.linear(x, unpack().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.unpack().to(grads[0].dtype), None, None
