"""Rows of different lengths as one packed sequence: no padding goes through the linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuned_service.text.supervision import EncodedRow


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the rows of a packed sequence lie. T: tokens of all rows; B: rows; L: the longest row.

    Attention alone needs rows side by side: it gathers them into [B, L], right-padded, and back.
    """

    rows: int
    longest_tokens: int
    to_padded: Tensor
    """int64 [B * L]: which packed token stands at each padded place; padding repeats some token."""
    to_packed: Tensor
    """int64 [T]: the padded place of each packed token."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> RowLayout:
        longest = max(lengths)
        length = torch.tensor(lengths)[:, None]
        starts = length.cumsum(0) - length
        places = torch.arange(longest)[None, :]
        return cls(
            rows=len(lengths),
            longest_tokens=longest,
            to_padded=(starts + places.minimum(length - 1)).flatten(),
            to_packed=(places < length).flatten().nonzero().flatten(),
        )


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows one after another. N: supervised tokens."""

    token_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T]: places within each row."""
    predicting: Tensor
    """int64 [N]: packed places whose next token is supervised."""
    targets: Tensor
    """int64 [N]: those next tokens."""
    layout: RowLayout

    @property
    def tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def supervised_tokens(self) -> int:
        return self.targets.numel()


def pack(rows: Sequence[EncodedRow]) -> PackedRows:
    """Rows in one sequence, in the order given; at least one."""
    lengths = [len(row.token_ids) for row in rows]
    token_ids = torch.tensor([token_id for row in rows for token_id in row.token_ids])
    supervised = torch.tensor([flag for row in rows for flag in row.supervised]).nonzero().flatten()
    return PackedRows(
        token_ids=token_ids[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        # The first token of a row is never supervised, so the place before belongs to the same row.
        predicting=supervised - 1,
        targets=token_ids[supervised],
        layout=RowLayout.of(lengths),
    )
