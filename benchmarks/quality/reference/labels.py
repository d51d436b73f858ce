"""Tasks whose rows have labels: classes of texts and images, tags of words. A linear head over the base's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.reference.rows import Row, padded

PREDICTED_ROWS = 32


@dataclass(frozen=True, slots=True)
class Labelling:
    """See `learner.Objective`."""

    model: Any
    head: nn.Linear
    labels: tuple[str, ...]

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Mean cross-entropy of labels, in nats."""
        outputs = self.head(torch.cat(self.vectors(rows)))
        targets = [self.labels.index(label) for row in rows for label in labels_of(row)]
        return functional.cross_entropy(outputs, torch.tensor(targets))

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
        """The likeliest label of each row, or of each of its words."""
        found: list[list[str]] = []
        for first in range(0, len(rows), PREDICTED_ROWS):
            vectors = self.vectors(rows[first : first + PREDICTED_ROWS])
            found += [[self.labels[i] for i in self.head(row).argmax(1).tolist()] for row in vectors]
        return {"labels": found}

    @torch.no_grad()
    def with_vectors(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with what a frozen base makes of them, computed once."""
        found: list[Tensor] = []
        for first in range(0, len(rows), PREDICTED_ROWS):
            found += self.vectors(rows[first : first + PREDICTED_ROWS])
        return [{**row, "vectors": vectors} for row, vectors in zip(rows, found, strict=True)]


def labels_of(row: Row) -> list[str]:
    return row["tags"] if "tags" in row else [row["label"]]


def classes(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({label for row in rows for label in labels_of(row)}))
