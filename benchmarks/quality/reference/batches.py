"""Rows of ids side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of an id that carries no loss, as transformers has it."""
Row = dict[str, Any]


def padded(ids: Sequence[Sequence[int]], filler: int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """`[N, longest]` of ids, and a mask of those that are no filler."""
    longest = max(map(len, ids))
    made, mask = torch.full((len(ids), longest), filler), torch.zeros(len(ids), longest, dtype=torch.long)
    for number, row in enumerate(ids):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        made[number, where] = torch.tensor(row)
        mask[number, where] = 1
    return made, mask
