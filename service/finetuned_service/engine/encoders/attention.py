"""Attention of every token to all of its own input, inputs packed one after the other without padding.

Registered in transformers' AttentionInterface under `IMPLEMENTATION`; transformers builds no mask for a name it
does not know. Differentiable: training packs its rows the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

IMPLEMENTATION = "finetuned_whole_inputs"
LENGTHS_ARGUMENT = "input_lengths"


def whole_input_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    input_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each input; those of equal length that stand together are one product.

    Args:
        module: the attention module; not looked at.
        query: `[1, heads, T, head_dim]`.
        key: `[1, heads, T, head_dim]`.
        value: `[1, heads, T, head_dim]`.
        attention_mask: always None (see above).
        input_lengths: tokens of each input, in the order of the rows; their sum is T.
        scaling: of the scores; None is 1/sqrt(head_dim).
        dropout: of the weights; 0 where nothing trains.

    Returns:
        `[1, T, heads, head_dim]` and no weights.
    """
    parts: list[Tensor] = []
    start = 0
    for length, group in groupby(input_lengths):
        inputs = sum(1 for _ in group)
        end = start + inputs * length
        attended = functional.scaled_dot_product_attention(
            _apart(query[0, :, start:end], length),
            _apart(key[0, :, start:end], length),
            _apart(value[0, :, start:end], length),
            dropout_p=dropout,
            scale=scaling,
        )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(parts)[None], None


def _apart(rows: Tensor, length: int) -> Tensor:
    """`[heads, inputs * length, head_dim]` → `[inputs, heads, length, head_dim]`."""
    return rows.unflatten(1, (-1, length)).transpose(0, 1)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers; harmless to repeat."""
    AttentionInterface.register(IMPLEMENTATION, whole_input_attention)
