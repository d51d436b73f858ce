"""Vectors of many texts whose loss looks at all of them, while only some have activations in memory: the gradients of the
vectors are taken first, and each part is computed again with its own (GradCache, Gao et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetuned_service.training.generators import generator_states, restore_generators
from finetuned_service.training.trainable import Parameters

T = TypeVar("T")


def vectors_in_parts(
    model: Parameters, parts: Sequence[Sequence[T]], compute: Callable[[Sequence[T]], Tensor]
) -> Tensor:
    """What `compute` makes of all parts, `[N, width]`, with a gradient for the model's parameters.

    Args:
        model: what computes; its dropout draws the same numbers both times.
        parts: at least one.
        compute: `[n, width]` of a part of n, with a gradient.
    """
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([compute(part) for part in parts])
    found: Tensor = _InParts.apply(torch.zeros((), requires_grad=True), model, parts, compute)
    return found


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _asks: Tensor,
        model: Parameters,
        parts: Sequence[Sequence[T]],
        compute: Callable[[Sequence[T]], Tensor],
    ) -> Tensor:
        """`_asks` for a gradient, which parameters inside of `compute` cannot from here."""
        ctx.model, ctx.parts, ctx.compute = model, parts, compute
        ctx.states, vectors = [], []
        for part in parts:
            ctx.states.append(generator_states(model))
            vectors.append(compute(part))
        ctx.sizes = [part.shape[0] for part in vectors]
        return torch.cat(vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        after = generator_states(ctx.model)
        for part, state, grad in zip(ctx.parts, ctx.states, grads[0].split(ctx.sizes), strict=True):
            restore_generators(ctx.model, state)
            with torch.enable_grad():
                vectors = ctx.compute(part)
            torch.autograd.backward(vectors, grad)
        restore_generators(ctx.model, after)
        return None, None, None, None
