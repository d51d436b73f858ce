"""Losses over vectors of texts: in-batch negatives, and cosines of scored pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def in_batch_loss(anchors: Tensor, candidates: Tensor, same: Tensor, scale: float) -> Tensor:
    """Summed cross-entropy of each anchor's own candidate among all of the batch, in nats.

    InfoNCE (van den Oord et al. 2018) over cosines, as MultipleNegativesRankingLoss (Henderson et al. 2017).

    Args:
        anchors: `[N, width]`.
        candidates: `[M, width]`: the N positives in the anchors' order, then any further negatives.
        same: `[N, M]` flags: candidate m is the same text as the positive of anchor n, so that it is no negative of it.
        scale: of cosines; one over the temperature.
    """
    rows = len(anchors)
    scores = scale * functional.normalize(anchors, dim=1) @ functional.normalize(candidates, dim=1).T
    own = torch.eye(rows, len(candidates), dtype=torch.bool, device=anchors.device)
    scores = scores.masked_fill(same & ~own, -torch.inf)
    return functional.cross_entropy(scores, torch.arange(rows, device=anchors.device), reduction="sum")


def cosine_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Summed square of what cosines are off, as CosineSimilarityLoss of sentence-transformers.

    Args:
        first: `[N, width]`.
        second: `[N, width]`.
        scores: `[N]`, -1 to 1.
    """
    return (functional.cosine_similarity(first, second) - scores).square().sum()
