"""Tasks of rows with something to tell: a label, several of them, a number, tags of words. A linear head over the
base's vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.reference.batches import Row, padded

PREDICTED_ROWS = 32
LABEL, LABELS, SCORE, TAGS = "label", "labels", "score", "tags"
"""What of a row is to be told."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """See `loops.Objective`."""

    model: Any
    head: nn.Linear
    told: str
    labels: tuple[str, ...]
    """In the order of the head's outputs; none for a number."""
    mean: float = 0.0
    spread: float = 1.0
    """Numbers are learnt as how many times `spread` they are from `mean`."""
    weights: Tensor | None = None
    """Of each of several labels: how many times a row that has it counts as much as one that has not."""

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Mean cross-entropy of labels, in nats; of several labels each by itself; of numbers the squared error, in their unit."""
        outputs, targets = self.head(torch.cat(self.vectors(rows))), self.targets(rows)
        match self.told:
            case "labels":
                return functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=self.weights)
            case "score":
                return functional.mse_loss(outputs, targets)
            case _:
                return functional.cross_entropy(outputs, targets)

    def targets(self, rows: Sequence[Row]) -> Tensor:
        """Indices of labels; or `[N, labels]` of 0 and 1; or `[N, 1]` of numbers in their unit."""
        match self.told:
            case "labels":
                return torch.tensor([[float(label in row[LABELS]) for label in self.labels] for row in rows])
            case "score":
                return torch.tensor([[(row[SCORE] - self.mean) / self.spread] for row in rows])
            case _:
                return torch.tensor([self.labels.index(label) for row in rows for label in labels_of(row)])

    def vectors(self, rows: Sequence[Row]) -> list[Tensor]:
        """`[labels, width]` of each row: of its words' first pieces, the mean of all its tokens, or its image."""
        if "vectors" in rows[0]:
            return [row["vectors"] for row in rows]
        if "pixels" in rows[0]:
            pixels = torch.stack([row["pixels"] for row in rows])
            return list(self.model(pixel_values=pixels).pooler_output.flatten(1)[:, None])
        ids, mask = padded([row["ids"] for row in rows])
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if "places" in rows[0]:
            return [hidden[number, row["places"]] for number, row in enumerate(rows)]
        weights = mask[..., None].to(hidden.dtype)
        return list(((hidden * weights).sum(1) / weights.sum(1))[:, None])

    @torch.no_grad()
    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The likeliest label of each row, or of each of its words; all that are likelier than not; or the number."""
        found: list[Tensor] = []
        for first in range(0, len(rows), PREDICTED_ROWS):
            found += [self.head(row) for row in self.vectors(rows[first : first + PREDICTED_ROWS])]
        match self.told:
            case "labels":
                flags = [(outputs[0] > 0).tolist() for outputs in found]
                named = (zip(self.labels, row, strict=True) for row in flags)
                return {"labels": [[label for label, on in row if on] for row in named]}
            case "score":
                return {"numbers": [self.mean + self.spread * outputs.item() for outputs in found]}
            case _:
                return {"labels": [[self.labels[i] for i in row.argmax(1).tolist()] for row in found]}

    @torch.no_grad()
    def with_vectors(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with what a frozen base makes of them, computed once."""
        found: list[Tensor] = []
        for first in range(0, len(rows), PREDICTED_ROWS):
            found += self.vectors(rows[first : first + PREDICTED_ROWS])
        return [{**row, "vectors": vectors} for row, vectors in zip(rows, found, strict=True)]


def balance(rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
    """`[labels]`: for each label the rows without it by those with it, as torch's documentation of `pos_weight` has it."""
    counts = torch.tensor([float(sum(label in row[LABELS] for row in rows)) for label in labels])
    return (len(rows) - counts) / counts


def told_by(rows: Sequence[Row]) -> str:
    """What of these rows is to be told."""
    return next(name for name in (LABEL, LABELS, SCORE, TAGS) if name in rows[0])


def labels_of(row: Row) -> list[str]:
    """None of a row with a number."""
    return row.get(TAGS) or row.get(LABELS) or ([row[LABEL]] if LABEL in row else [])


def classes(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({label for row in rows for label in labels_of(row)}))
