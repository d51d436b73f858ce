"""Answers of a causal language model, by their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from benchmarks.quality.reference.batches import IGNORED, Row, padded

SCORED_ROWS = 8
ANSWERED_ROWS = 24
ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Answering:
    """See `loops.Objective`."""

    model: Any
    base: Path
    prompts: Sequence[Sequence[int]] = ()
    """To be answered."""

    def loss(self, rows: Sequence[Row]) -> Tensor:
        """Nats a supervised token."""
        logits, labels = _predicted(self.model, rows)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def predictions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """How likely the rows' own answers are, and others where there are prompts."""
        found: dict[str, Any] = {
            "log_probabilities": all_log_probabilities(self.model, rows).tolist(),
            "supervised_tokens": [sum(label != IGNORED for label in row["labels"]) for row in rows],
        }
        if self.prompts:
            found["answers"] = self._answers()
        return found

    def _answers(self) -> list[str]:
        """Greedy."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.base)
        answers: list[str] = []
        for first in range(0, len(self.prompts), ANSWERED_ROWS):
            ids, mask = padded(self.prompts[first : first + ANSWERED_ROWS], tokenizer.eos_token_id, left=True)
            replies = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
            answers += tokenizer.batch_decode(replies[:, ids.shape[1] :], skip_special_tokens=True)
        return answers


def log_probabilities(model: Any, rows: Sequence[Row]) -> Tensor:
    """Of the supervised tokens of each row, summed, in nats: `[N]`."""
    logits, labels = _predicted(model, rows)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(labels.shape).sum(1)


def all_log_probabilities(model: Any, rows: Sequence[Row]) -> Tensor:
    """As `log_probabilities`, some rows at a time."""
    return torch.cat(
        [
            log_probabilities(model, rows[first : first + SCORED_ROWS])
            for first in range(0, len(rows), SCORED_ROWS)
        ]
    )


def _predicted(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits `[N, T - 1, vocabulary]`, and the labels that they predict."""
    ids, mask = padded([row["ids"] for row in rows])
    labels, _ = padded([row["labels"] for row in rows], IGNORED)
    return model(input_ids=ids, attention_mask=mask).logits[:, :-1], labels[:, 1:]
