"""Causal attention within each row of a packed sequence, as an implementation for transformers.

torch's CPU kernel is slow going backward through short rows (measured on SmolLM2-135M, 8 rows of 65
tokens: 14.5 ms a layer, a third of the step); as batched matrix products it takes under 5. Long rows
go to torch's kernel, which never holds a score matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from finetuned_service.training.packing import RowLayout

IMPLEMENTATION = "finetuned_training"
"""The name under which transformers' models find `packed_attention`. Masks are built only for names
that transformers knows, so with this one causality and row limits are ours alone."""

MAX_SCORES_BYTES = 16 * 2**20
"""Largest score matrix of a layer that is kept for the backward pass; more goes to torch's kernel."""


def register() -> None:
    """Make the implementation known to transformers; doing it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)


def packed_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    layout: RowLayout,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        query: [1, H, T, D].
        key: [1, K, T, D] with K dividing H (grouped-query attention).
        value: [1, K, T, D].
        layout: the rows of the packed sequence; the model's caller passes it as a keyword.
        scaling: factor of the scores.
        sliding_window: how many tokens, itself included, each token sees; None for all before it.

    Returns:
        [1, T, H, D], and no weights.
    """
    heads, tokens, head_dim = query.shape[1:]
    rows, longest = layout.rows, layout.longest_tokens
    windowed = sliding_window is not None and sliding_window < longest
    if rows * heads * longest * longest * query.element_size() <= MAX_SCORES_BYTES:
        hidden = _hidden_positions(longest, sliding_window if windowed else None, query.device)
        out: Tensor = _BatchedAttention.apply(
            _padded(query, layout), _padded(key, layout), _padded(value, layout), hidden, scaling
        )
    else:
        seen = ~_hidden_positions(longest, sliding_window, query.device) if windowed else None
        out = functional.scaled_dot_product_attention(
            _padded(query, layout),
            _padded(key, layout),
            _padded(value, layout),
            attn_mask=seen,
            is_causal=seen is None,
            scale=scaling,
            enable_gqa=True,
        )
    packed = out.transpose(1, 2).reshape(-1, heads, head_dim).index_select(0, layout.to_packed)
    return packed.view(1, tokens, heads, head_dim), None


def _padded(packed: Tensor, layout: RowLayout) -> Tensor:
    """[1, H, T, D] → [B, H, L, D]. Right padding needs no mask: causality hides it from real tokens."""
    heads, _, head_dim = packed.shape[1:]
    rows = packed[0].transpose(0, 1).index_select(0, layout.to_padded)
    return rows.view(layout.rows, layout.longest_tokens, heads, head_dim).transpose(1, 2)


def _hidden_positions(longest: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """Which keys (columns) a query (row) must not see: bool [L, L]."""
    places = torch.arange(longest, device=device)
    distance = places[:, None] - places[None, :]
    hidden = distance < 0
    return hidden if sliding_window is None else hidden | (distance >= sliding_window)


class _BatchedAttention(torch.autograd.Function):
    """softmax(q k^T) v as batched products; query heads that share a key head are one matrix."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scaling: float) -> Tensor:
        """q: [B, H, L, D]; k, v: [B, K, L, D]; hidden: bool [L, L]. Returns [B, H, L, D]."""
        rows, heads, longest, head_dim = q.shape
        groups = rows * k.shape[1]
        # [B*K, G*L, D] against [B*K, L, D], with G query heads for each of the K key heads.
        scaled = (q * scaling).reshape(groups, -1, head_dim)
        keys, values = k.reshape(groups, longest, head_dim), v.reshape(groups, longest, head_dim)
        scores = torch.bmm(scaled, keys.transpose(1, 2)).view(groups, -1, longest, longest)
        exact = torch.promote_types(q.dtype, torch.float32)
        weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1, dtype=exact)
        weights = weights.to(q.dtype).view(groups, -1, longest)
        out = torch.bmm(weights, values)
        ctx.save_for_backward(scaled, keys, values, weights, out)
        ctx.scaling = scaling
        ctx.shapes = (q.shape, k.shape)
        return out.view(rows, heads, longest, head_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """With P the weights, dS = P * (dP - rowsum(dO * O)) (FlashAttention, Dao et al. 2022, B.2)."""
        scaled, keys, values, weights, out = ctx.saved_tensors
        q_shape, k_shape = ctx.shapes
        grad = grads[0].reshape(out.shape)
        d_values = torch.bmm(weights.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, values.transpose(1, 2))
        exact = torch.promote_types(grad.dtype, torch.float32)
        mean = (grad.to(exact) * out).sum(-1, keepdim=True)
        d_scores = (d_weights - mean).mul_(weights).to(grad.dtype)
        d_query = torch.bmm(d_scores, keys).mul_(ctx.scaling)
        d_keys = torch.bmm(d_scores.transpose(1, 2), scaled)
        return d_query.view(q_shape), d_keys.view(k_shape), d_values.view(k_shape), None, None
