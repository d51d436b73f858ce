"""Similarity and retrieval of vectors, by numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

DEPTH = 10
"""How far down a ranking MRR and recall look."""
_QUERIES_AT_ONCE = 256
"""Beside what trains there is no room for the cosine of every query and every text."""


def cosines(first: Vectors, second: Vectors) -> NDArray[np.float64]:
    """`[N]` of the rows of two `[N, width]`."""
    one, other = normalized(first), normalized(second)
    return (one * other).sum(1)


def normalized(vectors: Vectors) -> NDArray[np.float64]:
    """Rows of length 1; one of length 0 stays."""
    exact = vectors.astype(np.float64)
    return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)


def rankings(queries: Vectors, corpus: Vectors) -> NDArray[np.int64]:
    """`[N, M]`, or `[N, DEPTH]` of a larger corpus: for each query the corpus by falling cosine; of equals the first comes
    first.
    """
    texts = normalized(corpus).T
    starts = range(0, len(queries), _QUERIES_AT_ONCE)
    scores = (normalized(queries[start : start + _QUERIES_AT_ONCE]) @ texts for start in starts)
    return np.concatenate([np.argsort(-part, axis=1, kind="stable")[:, :DEPTH].copy() for part in scores])


def retrieval(ranked: NDArray[np.int64], relevant: Sequence[frozenset[int]]) -> dict[str, float]:
    """Means over the queries: the share of what is relevant among the first (recall@k), and one over the place of the
    first relevant (MRR@10, 0 beyond).
    """
    first = [
        next((1.0 / place for place, found in enumerate(row[:DEPTH], 1) if int(found) in wanted), 0.0)
        for row, wanted in zip(ranked, relevant, strict=True)
    ]
    figures = {f"mrr_at_{DEPTH}": float(np.mean(first))}
    for depth in (1, DEPTH):
        shares = [
            len(wanted.intersection(map(int, row[:depth]))) / len(wanted)
            for row, wanted in zip(ranked, relevant, strict=True)
        ]
        figures[f"recall_at_{depth}"] = float(np.mean(shares))
    return figures
