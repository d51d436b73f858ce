"""Vectors of texts: each row's pair among all of its batch, by cosine (Henderson et al. 2017); or cosines to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.reference.batches import Row, padded


@dataclass(frozen=True, slots=True)
class Pairing:
    """See `loops.Objective`."""

    model: Any
    scale: float

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Mean cross-entropy of own pairs, in nats; equal texts are no negatives of each other."""
        cosines = self._vectors([row["first"] for row in rows]) @ self._vectors([r["second"] for r in rows]).T
        texts = [row["positive"] for row in rows]
        others = torch.tensor([[a == b and i != j for j, b in enumerate(texts)] for i, a in enumerate(texts)])
        scores = (self.scale * cosines).masked_fill(others, -torch.inf)
        return functional.cross_entropy(scores, torch.arange(len(rows)))

    @torch.no_grad()
    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The vectors of both sides."""
        sides = {"anchors": "first", "candidates": "second"}
        return {"vectors": {s: self._vectors([row[k] for row in rows]).tolist() for s, k in sides.items()}}

    def _vectors(self, ids: Sequence[Sequence[int]]) -> Tensor:
        return vectors_of(self.model, ids)


@dataclass(frozen=True, slots=True)
class Likening:
    """See `loops.Objective`."""

    model: Any

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Mean squared error of cosines."""
        return functional.mse_loss(self._cosines(rows), torch.tensor([row["score"] for row in rows]))

    @torch.no_grad()
    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The cosines."""
        return {"numbers": self._cosines(rows).tolist()}

    def _cosines(self, rows: Sequence[Row]) -> Tensor:
        first, second = (vectors_of(self.model, [row[side] for row in rows]) for side in ("first", "second"))
        return (first * second).sum(1)


def vectors_of(model: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """`[N, width]` of length 1: the mean of all tokens, as sentence-transformers has it for this base."""
    padded_ids, mask = padded(ids)
    hidden = model(input_ids=padded_ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(hidden.dtype)
    return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)
