"""Preferences between answers, by the definition of DPO: a causal language model beside itself as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.reference.answers import all_log_probabilities, log_probabilities
from benchmarks.quality.reference.batches import Row

SIDES = ("chosen", "rejected")
_BEFORE = "before"


@dataclass(frozen=True, slots=True)
class Preferring:
    """See `loops.Objective`; of rows that `asked_before` has made."""

    model: Any
    beta: float

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Nats a pair (Rafailov et al. 2023, equation 7)."""
        gained = [
            log_probabilities(self.model, [row[side] for row in rows])
            - torch.tensor([row[_BEFORE][place] for row in rows])
            for place, side in enumerate(SIDES)
        ]
        return -functional.logsigmoid(self.beta * (gained[0] - gained[1])).mean()

    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """By how many nats each side has become likelier."""
        now = _asked(self.model, rows)
        return {
            "log_probabilities": [
                [late - early for late, early in zip(row_now, row[_BEFORE], strict=True)]
                for row_now, row in zip(now, rows, strict=True)
            ]
        }


def asked_before(model: Any, rows: Sequence[Row]) -> list[Row]:
    """The rows, each with how likely the model finds both sides now."""
    return [{**row, _BEFORE: both} for row, both in zip(rows, _asked(model, rows), strict=True)]


def gains(model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """By how many nats both sides of each row have become likelier than without PEFT's layers."""
    with model.disable_adapter():
        before = _asked(model, rows)
    now = _asked(model, rows)
    return [
        [late - early for late, early in zip(*both, strict=True)] for both in zip(now, before, strict=True)
    ]


def _asked(model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """Nats of both sides of each row."""
    found = all_log_probabilities(model, [row[side] for row in rows for side in SIDES])
    sides: list[list[float]] = found.view(-1, 2).tolist()
    return sides
