"""What quantization costs in quality, measured on the same windows for the source and the result.

Perplexity is exp of the mean negative log-likelihood, in nats, of every token that has one before it
in its window. KL is D(source ‖ quantized) of the next-token distributions at the same positions.
Log-softmax in float32, sums in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetuned_service.errors import InvalidField

CHUNK_POSITIONS = 128
"""Positions whose distributions are held in float32 at a time: 25 MB a model for 49k words."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result beside its source, over `tokens` predicted tokens."""

    tokens: int
    source_perplexity: float
    quantized_perplexity: float
    mean_kl_nats: float
    top1_agreement: float


@dataclass(slots=True)
class _Sums:
    tokens: int = 0
    source_nats: float = 0.0
    quantized_nats: float = 0.0
    kl_nats: float = 0.0
    agreed: int = 0


@torch.inference_mode()
def compare(
    source: Any, quantized: Any, windows: Sequence[Sequence[int]], on_window: Callable[[int], None]
) -> Comparison:
    """Score both models on all windows.

    Args:
        source: a causal LM of transformers.
        quantized: another with the same vocabulary.
        windows: token ids, each with at least 2.
        on_window: called after each window with the number of tokens predicted so far; may raise to stop.

    Raises:
        InvalidField: if one of the models gives values that are not finite.
    """
    source.eval()
    quantized.eval()
    sums = _Sums()
    for window in windows:
        token_ids = torch.tensor([list(window)])
        _score(
            sums,
            source(token_ids, use_cache=False).logits[0, :-1],
            quantized(token_ids, use_cache=False).logits[0, :-1],
            token_ids[0, 1:],
        )
        on_window(sums.tokens)
    for field, what, nats in (
        ("base", "source", sums.source_nats),
        ("weight_format", "quantized base", sums.quantized_nats + sums.kl_nats),
    ):
        if not math.isfinite(nats):
            raise InvalidField.one(
                field, f"the {what} gives NaN or infinite values on the measured text; take another"
            )
    return Comparison(
        tokens=sums.tokens,
        source_perplexity=math.exp(sums.source_nats / sums.tokens),
        quantized_perplexity=math.exp(sums.quantized_nats / sums.tokens),
        # Rounding can leave the KL of equal distributions a little below zero.
        mean_kl_nats=max(0.0, sums.kl_nats / sums.tokens),
        top1_agreement=sums.agreed / sums.tokens,
    )


def _score(sums: _Sums, source_logits: Tensor, quantized_logits: Tensor, targets: Tensor) -> None:
    """Add the positions of one window: logits `[positions, vocabulary]`, targets `[positions]`."""
    sums.tokens += targets.shape[0]
    for begin in range(0, targets.shape[0], CHUNK_POSITIONS):
        chunk = slice(begin, begin + CHUNK_POSITIONS)
        source = torch.log_softmax(source_logits[chunk].float(), dim=-1)
        quantized = torch.log_softmax(quantized_logits[chunk].float(), dim=-1)
        target = targets[chunk, None]
        sums.source_nats -= source.gather(1, target).sum(dtype=torch.float64).item()
        sums.quantized_nats -= quantized.gather(1, target).sum(dtype=torch.float64).item()
        sums.kl_nats += (source.exp() * (source - quantized)).sum(dtype=torch.float64).item()
        sums.agreed += int((source.argmax(dim=1) == quantized.argmax(dim=1)).sum())
