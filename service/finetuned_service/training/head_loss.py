"""Cross-entropy through a head that trains: as `loss.py`, with the head's gradient beside the hidden states'.

A chunk's logits are computed again in the backward pass, when it is known how much each token counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_CHUNK_ELEMENTS = 2**23
"""Logits at a time: 32 MiB in float32."""


def trained_head_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each token, in nats.

    Args:
        hidden: [N, d], the last hidden states where the next token is supervised.
        head: [V, d] in the dtype of `hidden`, the weight that makes logits.
        targets: int64 [N].

    Returns:
        [N] in float32 (float64 if hidden is), differentiable in `hidden` and `head`.
    """
    losses: Tensor = _TrainedHead.apply(hidden, head, targets)
    return losses


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, head, targets)
        parts = [
            -_log_probabilities(hidden[part], head).gather(1, targets[part, None])[:, 0]
            for part in _parts(hidden, head)
        ]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        hidden, head, targets = ctx.saved_tensors
        exact = torch.promote_types(head.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros_like(head, dtype=exact)
        for part in _parts(hidden, head):
            d_logits = _log_probabilities(hidden[part], head).exp_()
            d_logits.scatter_add_(
                1, targets[part, None], torch.full_like(targets[part, None], -1, dtype=exact)
            )
            d_logits = d_logits.mul_(grads[0][part, None]).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = d_logits @ head
            d_head += d_logits.T @ hidden[part]
        return d_hidden, d_head.to(head.dtype), None


def _log_probabilities(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden @ head.T
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def _parts(hidden: Tensor, head: Tensor) -> list[slice]:
    rows = max(1, MAX_CHUNK_ELEMENTS // head.shape[0])
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
