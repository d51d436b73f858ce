"""Cross-entropy of the supervised tokens, without ever holding the logits of a whole batch.

With a vocabulary of 49k the logits of 500 tokens are 100 MB in float32. Only places whose next token
is supervised go through the head, a chunk at a time, and the gradient of a chunk is taken while its
logits are there (as in Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.training.head_loss import trained_head_losses
from finetuned_service.training.native.kernels import Kernels

MAX_CHUNK_ELEMENTS = 2**23
"""Logits at a time: 32 MiB in float32, 16 in bfloat16."""
TOKENS_MULTIPLE = 32
"""The tokens of a chunk are filled up to a multiple of this."""


def supervised_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, scale: float, kernels: Kernels | None = None
) -> Tensor:
    """`scale` times the sum of -log p(target), in nats: the sum of `token_losses`.

    Returns:
        A scalar in float32 (float64 if hidden is).
    """
    return token_losses(hidden, head, targets, scale, kernels).sum()


def token_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, scale: float = 1.0, kernels: Kernels | None = None
) -> Tensor:
    """`scale` times -log p(target) of each token, in nats.

    A token's loss depends on its own hidden state alone, so the gradient of each can be taken before it is
    known how much it will count.

    Args:
        hidden: [N, d], the last hidden states where the next token is supervised.
        head: [V, d], the weight that makes logits; it gets a gradient if it asks for one.
        targets: int64 [N].
        scale: 1 / (supervised tokens of the whole batch) makes the losses of micro-batches add up to
            the loss of the batch, whatever their sizes.
        kernels: compiled passes over logits in bfloat16, without a copy in float32; None takes torch's.

    Returns:
        [N] in float32 (float64 if hidden is).
    """
    if head.requires_grad:
        return trained_head_losses(hidden, head, targets) * scale
    losses: Tensor = _LinearCrossEntropy.apply(hidden, head, targets, scale, kernels)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, scale: float, kernels: Kernels | None
    ) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        tokens = hidden.shape[0]
        # Few different sizes, as in packing.py; tokens of padding count nothing.
        padding = -tokens % TOKENS_MULTIPLE
        hidden, targets = functional.pad(hidden, (0, 0, 0, padding)), functional.pad(targets, (0, padding))
        weights = (torch.arange(tokens + padding, device=hidden.device) < tokens).to(exact)[:, None] * scale
        losses = torch.zeros(tokens + padding, dtype=exact, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = max(TOKENS_MULTIPLE, MAX_CHUNK_ELEMENTS // head.shape[0] // TOKENS_MULTIPLE * TOKENS_MULTIPLE)
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ head.T
            if kernels is not None:
                # The last chunk's padding is computed, so that sizes are few, and left out.
                counted = slice(start, min(tokens, start + logits.shape[0]))
                size = counted.stop - start
                losses[counted] = kernels.cross_entropy_(logits[:size], targets[counted], scale)
                logits[size:] = 0
                if grad is not None:
                    grad[part] = logits @ head
                continue
            target, weight = targets[part, None], weights[part]
            # Logits in the model's dtype, then exact: as transformers computes its loss.
            log_probabilities = torch.log_softmax(logits.to(exact), dim=-1)
            losses[part] = -(log_probabilities.gather(1, target) * weight)[:, 0]
            if grad is not None:
                d_logits = log_probabilities.exp_()
                d_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                grad[part] = d_logits.mul_(weight).to(hidden.dtype) @ head
        ctx.save_for_backward(grad if grad is None else grad[:tokens])
        return losses[:tokens]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype)[:, None], None, None, None, None
