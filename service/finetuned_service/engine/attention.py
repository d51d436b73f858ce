"""Causal attention of packed rows over exactly the live keys and values of each row's sequence.

Registered in transformers' AttentionInterface under `IMPLEMENTATION`; transformers builds no mask for
a name it does not know, so causality and lengths are decided by `attention_rows.py` alone. The plan of a
step travels as a keyword argument through the model's forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from finetuned_service.engine.attention_rows import DecodeGroup, MaskedSpan, PackedRows, PromptGroup
from finetuned_service.errors import Unimplemented

IMPLEMENTATION = "finetuned_packed"
ROWS_ARGUMENT = "packed_rows"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows,
    scaling: float | None = None,
    dropout: float = 0.0,
    **features: Any,
) -> tuple[Tensor, None]:
    """Write the rows' keys and values into the arena, then attend.

    Args:
        module: the attention module; its `layer_idx` chooses the arena's layer.
        query: `[1, heads, T, head_dim]`, rotated.
        key: `[1, kv_heads, T, head_dim]`, rotated.
        value: `[1, kv_heads, T, head_dim]`.
        attention_mask: always None (see above).
        packed_rows: the plan of this step.
        scaling: of the scores; None is 1/sqrt(head_dim).
        dropout: always 0: the engine only evaluates.
        features: what else the model's attention asks for; anything set that changes numbers is refused.

    Returns:
        `[1, T, heads, head_dim]` and no weights.

    Raises:
        Unimplemented: for sliding windows, soft caps and sinks.
    """
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if features.get(name) is not None:
            raise Unimplemented.feature(f"a base whose attention has {name}", "bases with full attention")
    layer: Any = module.layer_idx
    keys, values = packed_rows.arena.write(layer, packed_rows.slots, key[0], value[0])
    queries = query[0]
    if len(packed_rows.groups) == 1 and packed_rows.groups[0].whole:
        return _attend_group(packed_rows.groups[0], queries, keys, values, scaling)[None], None
    output = torch.empty(
        queries.shape[1], queries.shape[0], queries.shape[2], dtype=query.dtype, device=query.device
    )
    for group in packed_rows.groups:
        output.index_copy_(0, group.rows, _attend_group(group, queries, keys, values, scaling))
    for prompts in packed_rows.prompts:
        output.index_copy_(0, prompts.rows, _attend_prompts(prompts, queries, keys, values, scaling))
    for masked in packed_rows.spans:
        output[masked.span.start : masked.span.end] = _attend_span(masked, queries, keys, values, scaling)
    return output[None], None


def _attend_group(
    group: DecodeGroup, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None
) -> Tensor:
    """`[S, heads, head_dim]` of single rows; `queries [heads, T, head_dim]`, keys and values the arenas.

    The query heads that share a key head stand where the queries of a sequence usually do.
    """
    kv_heads, _, head_dim = keys.shape
    _, count, _, length = group.mask.shape
    rows = queries if group.whole else queries.index_select(1, group.rows)
    attended = functional.scaled_dot_product_attention(
        rows.reshape(kv_heads, -1, count, head_dim).transpose(1, 2),
        _gathered(keys, group.kv_places).view(kv_heads, count, length, head_dim),
        _gathered(values, group.kv_places).view(kv_heads, count, length, head_dim),
        attn_mask=group.mask,
        scale=scaling,
    )
    return attended.transpose(0, 1).reshape(count, -1, head_dim)


def _gathered(arena: Tensor, kv_places: Tensor) -> Tensor:
    """`[kv_heads * N, head_dim]` of a layer's keys or values."""
    return arena.view(-1, arena.shape[-1]).index_select(0, kv_places)


def _attend_prompts(
    prompts: PromptGroup, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None
) -> Tensor:
    """`[R, heads, head_dim]` of the rows of several prompts."""
    heads, _, head_dim = queries.shape
    kv_heads, length = keys.shape[0], len(prompts.padded_rows) // prompts.count
    groups = heads // kv_heads

    def side_by_side(rows: Tensor) -> Tensor:
        return rows.view(-1, prompts.count, length, head_dim).transpose(0, 1)

    attended = functional.scaled_dot_product_attention(
        side_by_side(queries.index_select(1, prompts.padded_rows)),
        side_by_side(_gathered(keys, prompts.kv_places)).repeat_interleave(groups, dim=1),
        side_by_side(_gathered(values, prompts.kv_places)).repeat_interleave(groups, dim=1),
        is_causal=True,
        scale=scaling,
    )
    return attended.transpose(1, 2).reshape(-1, heads, head_dim).index_select(0, prompts.places)


def _attend_span(
    masked: MaskedSpan, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None
) -> Tensor:
    """`[rows, heads, head_dim]` of one sequence's rows, on its own part of the arenas."""
    span = masked.span
    groups = queries.shape[0] // keys.shape[0]
    attended = functional.scaled_dot_product_attention(
        queries[None, :, span.start : span.end],
        keys[None, :, span.kv_start : span.kv_end].repeat_interleave(groups, dim=1),
        values[None, :, span.kv_start : span.kv_end].repeat_interleave(groups, dim=1),
        attn_mask=masked.mask,
        is_causal=masked.causal,
        scale=scaling,
    )
    return attended[0].transpose(0, 1)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers; harmless to repeat."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)


def require_full_attention(model: Any) -> None:
    """Full attention in every layer is what every path computes; one window for all layers that hides nothing of the
    context is none.

    Raises:
        Unimplemented: a window does.
    """
    _refuse_partial_attention(model.config)
    # Mistral reads it there, others have it in each layer.
    holders: list[Any] = [model.config, *model.modules()]
    for holder in holders:
        if getattr(holder, "sliding_window", None) is not None:
            holder.sliding_window = None


def _refuse_partial_attention(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if kinds or (window is not None and window < config.max_position_embeddings):
        found = ", ".join(sorted(kinds)) or f"a sliding window of {window} tokens"
        raise Unimplemented.feature(f"a base with {found}", "bases with full attention in every layer")
