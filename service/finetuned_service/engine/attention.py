"""Causal attention of packed rows over exactly the live keys and values of each row's sequence.

Registered in transformers' AttentionInterface under `IMPLEMENTATION`; transformers builds no mask for
a name it does not know, so causality and lengths are decided here alone. The rows of a step travel as
a keyword argument through the model's forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.errors import Unimplemented

IMPLEMENTATION = "finetuned_packed"
ROWS_ARGUMENT = "packed_rows"


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """Consecutive rows `[start, end)` of one sequence and the arena range of all its live tokens.

    The rows' own tokens are the last of the range. `mask` `[rows, tokens]` is additive and None where
    the rows need none: a single row, or a prompt from its beginning (`causal`).
    """

    start: int
    end: int
    kv_start: int
    kv_end: int
    causal: bool
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedRows:
    """How the T rows of a step attend: where each row's key goes in the arena, and its span."""

    arena: KvArena
    slots: Tensor
    """`[T]` int64: arena index of each row's own key and value."""
    spans: tuple[AttentionSpan, ...]


def make_span(
    start: int, rows: int, kv_start: int, live_tokens: int, dtype: torch.dtype, device: torch.device
) -> AttentionSpan:
    """The span of `rows` rows whose tokens are the last of `live_tokens`."""
    earlier = live_tokens - rows
    mask = None
    if rows > 1 and earlier:
        hidden = torch.ones(rows, live_tokens, dtype=torch.bool, device=device).triu_(earlier + 1)
        mask = torch.zeros(rows, live_tokens, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
    causal = rows > 1 and not earlier
    return AttentionSpan(start, start + rows, kv_start, kv_start + live_tokens, causal, mask)


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
    """Write the rows' keys and values into the arena, then attend span by span.

    Args:
        module: the attention module; its `layer_idx` chooses the arena's layer.
        query: `[1, heads, T, head_dim]`, rotated.
        key: `[1, kv_heads, T, head_dim]`, rotated.
        value: `[1, kv_heads, T, head_dim]`.
        attention_mask: always None (see above).
        packed_rows: the rows of this step.
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
    heads, head_dim = query.shape[1], query.shape[3]
    groups = heads // key.shape[1]
    output = torch.empty(1, query.shape[2], heads, head_dim, dtype=query.dtype, device=query.device)
    for span in packed_rows.spans:
        live_keys = keys[None, :, span.kv_start : span.kv_end]
        live_values = values[None, :, span.kv_start : span.kv_end]
        rows = query[:, :, span.start : span.end]
        if span.end - span.start == 1:
            # One row: the query heads of a group attend like so many rows to their shared keys.
            attended = functional.scaled_dot_product_attention(
                rows.view(1, -1, groups, head_dim), live_keys, live_values, scale=scaling
            ).view(1, heads, 1, head_dim)
        else:
            attended = functional.scaled_dot_product_attention(
                rows,
                live_keys.repeat_interleave(groups, dim=1),
                live_values.repeat_interleave(groups, dim=1),
                attn_mask=span.mask,
                is_causal=span.causal,
                scale=scaling,
            )
        output[:, span.start : span.end] = attended.transpose(1, 2)
    return output, None


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers; harmless to repeat."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
