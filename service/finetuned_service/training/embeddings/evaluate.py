"""Held-out pairs answered by the engine that serves: the plain base, an incumbent, the adapter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuned_service.engine.messages import AdapterHandle, Encode, Sampling, Submit
from finetuned_service.jobs.pace import Phase
from finetuned_service.training.embeddings.figures import Vectors, cosines, rankings, retrieval
from finetuned_service.training.embeddings.pairs import PairExample, Tokens
from finetuned_service.training.encoded import encoded
from finetuned_service.training.heads.scores import pearson, spearman
from finetuned_service.vocabulary import Metric, Pooling


@dataclass(frozen=True, slots=True)
class PairResult:
    """What one subject makes of the held-out rows."""

    metrics: tuple[Metric, ...]
    answers: tuple[str, ...]
    """For people, one for each row: the nearest of all held-out texts, or the cosine."""
    correct: tuple[bool, ...]
    """For each row whether the nearest text is one that belongs to its anchor, as the metrics count; a cosine never is."""


def texts_of(rows: Sequence[PairExample]) -> list[Tokens]:
    """The different texts of the rows, which are encoded once each."""
    return list(dict.fromkeys(tokens for row in rows for tokens in row.all_texts))


def measured(
    base_directory: Path,
    adapter: AdapterHandle | None,
    rows: Sequence[PairExample],
    pooling: Pooling,
    threads: int,
    device: str = "cpu",
    phase: Phase | None = None,
) -> PairResult:
    """The figures of the rows, which all have scores, or none has; at least one. `phase` has a step for each of their
    `texts_of`.

    Raises:
        Stopped: the process was asked to stop.
    """
    texts = texts_of(rows)
    requests = [
        Submit(number, tokens, adapter, Sampling(1), encode=Encode(pooling))
        for number, tokens in enumerate(texts)
    ]
    found = encoded(base_directory, requests, threads, device, phase)
    return scored(rows, {tokens: found[number][0] for number, tokens in enumerate(texts)})


def scored(rows: Sequence[PairExample], vectors: Mapping[Tokens, Vectors]) -> PairResult:
    """The figures of the rows, as of `measured`, from the vectors `[width]` of all their texts."""
    if rows[0].score is not None:
        return _similarity(rows, vectors)
    return _retrieval(rows, vectors)


def _similarity(rows: Sequence[PairExample], vectors: Mapping[Tokens, Vectors]) -> PairResult:
    first = np.stack([vectors[row.anchor] for row in rows])
    second = np.stack([vectors[row.positive] for row in rows])
    found = cosines(first, second)
    expected = np.array([row.score for row in rows], dtype=np.float64)
    figures = {"spearman": spearman(expected, found), "pearson": pearson(expected, found)}
    answers = tuple(f"{value:.3f}" for value in found)
    return PairResult(_metrics(figures), answers, (False,) * len(answers))


def _retrieval(rows: Sequence[PairExample], vectors: Mapping[Tokens, Vectors]) -> PairResult:
    corpus = list(dict.fromkeys(tokens for row in rows for tokens in row.all_texts[1:]))
    shown = {tokens: text for row in rows for tokens, text in zip(row.all_texts, row.texts, strict=True)}
    place = {tokens: number for number, tokens in enumerate(corpus)}
    wanted: dict[Tokens, set[int]] = defaultdict(set)
    for row in rows:
        wanted[row.anchor].add(place[row.positive])
    anchors = list(wanted)
    ranked = rankings(
        np.stack([vectors[anchor] for anchor in anchors]), np.stack([vectors[text] for text in corpus])
    )
    nearest = {anchor: int(row[0]) for anchor, row in zip(anchors, ranked, strict=True)}
    figures = retrieval(ranked, [frozenset(wanted[anchor]) for anchor in anchors])
    return PairResult(
        _metrics(figures),
        tuple(shown[corpus[nearest[row.anchor]]] for row in rows),
        tuple(nearest[row.anchor] in wanted[row.anchor] for row in rows),
    )


def _metrics(figures: Mapping[str, float]) -> tuple[Metric, ...]:
    return tuple(Metric(name=name, value=value, higher_is_better=True) for name, value in figures.items())
