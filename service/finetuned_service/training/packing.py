"""Rows of different lengths as one packed sequence: hardly any padding goes through the linear layers.

Sizes are rounded up, so that few different ones occur: oneDNN compiles and keeps a kernel for every
shape of a matrix product (measured on SmolLM2-135M: 25 MB for every new number of tokens, up to a
gigabyte, and 10% of the time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.bases.device import CPU
from finetuned_service.text.supervision import EncodedRow

PACKED_MULTIPLE = 32
"""The tokens of a packed sequence are filled up to a multiple of this by tokens of no row."""
ROW_MULTIPLE = 8
"""And the rows, where attention has them side by side, to a multiple of this."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the rows of a packed sequence lie. T: its tokens; B: rows; L: the longest row, rounded up.

    Attention alone needs rows side by side: it gathers them into [B, L], right-padded, and back. Tokens
    of no row get the attention of some other token; nothing reads it.
    """

    rows: int
    longest_tokens: int
    to_padded: Tensor
    """int64 [B * L]: which packed token stands at each padded place; padding repeats some token."""
    to_packed: Tensor
    """int64 [T]: the padded place of each packed token."""
    starts: Tensor
    """int64 [B]: the first packed token of each row."""
    lengths: Tensor
    """int64 [B]."""

    @classmethod
    def of(cls, lengths: Sequence[int], tokens: int, device: torch.device = CPU) -> RowLayout:
        """The layout of rows of these lengths in a packed sequence of at least as many tokens; on the device."""
        longest = _rounded_up(max(lengths), ROW_MULTIPLE)
        lengths_of_rows = torch.tensor(lengths)
        length = lengths_of_rows[:, None]
        starts = length.cumsum(0) - length
        places = torch.arange(longest)[None, :]
        to_packed = (places < length).flatten().nonzero().flatten()
        return cls(
            rows=len(lengths),
            longest_tokens=longest,
            to_padded=(starts + places.minimum(length - 1)).flatten().to(device),
            to_packed=functional.pad(to_packed, (0, tokens - to_packed.numel())).to(device),
            starts=starts.flatten().to(device),
            lengths=lengths_of_rows.to(device),
        )


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows one after another, then tokens of no row. N: supervised tokens."""

    token_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T]: places within each row."""
    predicting: Tensor
    """int64 [N]: packed places whose next token is supervised."""
    targets: Tensor
    """int64 [N]: those next tokens."""
    layout: RowLayout


def pack(rows: Sequence[EncodedRow], device: torch.device = CPU) -> PackedRows:
    """Rows in one sequence, in the order given; at least one. Made on the CPU, then moved."""
    lengths = [len(row.token_ids) for row in rows]
    tokens = _rounded_up(sum(lengths), PACKED_MULTIPLE)
    token_ids = torch.tensor([token_id for row in rows for token_id in row.token_ids])
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    supervised = torch.tensor([flag for row in rows for flag in row.supervised]).nonzero().flatten()
    filling = (0, tokens - sum(lengths))
    return PackedRows(
        token_ids=functional.pad(token_ids, filling)[None].to(device),
        position_ids=functional.pad(position_ids, filling)[None].to(device),
        # The first token of a row is never supervised, so the place before belongs to the same row.
        predicting=(supervised - 1).to(device),
        targets=token_ids[supervised].to(device),
        layout=RowLayout.of(lengths, tokens, device),
    )


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
