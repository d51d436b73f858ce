"""Cross-entropy of the supervised tokens, without ever holding the logits of a whole batch.

With a vocabulary of 49k the logits of 500 tokens are 100 MB in float32. Only places whose next token
is supervised go through the head, a chunk at a time, and the gradient of a chunk is taken while its
logits are there (as in Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_CHUNK_ELEMENTS = 2**23
"""Logits at a time: 32 MiB in float32."""


def supervised_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, scale: float) -> Tensor:
    """`scale` times the sum of -log p(target), in nats.

    Args:
        hidden: [N, d], the last hidden states where the next token is supervised.
        head: [V, d], the frozen weight that makes logits.
        targets: int64 [N].
        scale: 1 / (supervised tokens of the whole batch) makes the losses of micro-batches add up to
            the loss of the batch, whatever their sizes.

    Returns:
        A scalar in float32 (float64 if hidden is).
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head, targets, scale)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, scale: float) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        chunk = max(1, MAX_CHUNK_ELEMENTS // head.shape[0])
        loss = torch.zeros((), dtype=exact)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            target = targets[part, None]
            # Logits in the model's dtype, then exact: as transformers computes its loss.
            log_probabilities = torch.log_softmax((hidden[part] @ head.T).to(exact), dim=-1)
            loss -= log_probabilities.gather(1, target).sum()
            if grad is not None:
                d_logits = log_probabilities.exp_()
                d_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                grad[part] = d_logits.mul_(scale).to(hidden.dtype) @ head
        ctx.save_for_backward(grad)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None
