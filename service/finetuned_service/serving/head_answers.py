"""What the outputs of a head say, in the labels that it was trained with. numpy, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuned_service.adapters.head import Head, Problem
from finetuned_service.serving.encoded_values import Classified, Tagged
from finetuned_service.text.entities import Entity, spans_of
from finetuned_service.text.tokenizer import EncodedText
from finetuned_service.text.words import answered_words

_Rows = NDArray[np.floating[Any]]


def classified(input_index: int, head: Head, outputs: _Rows, top_k: int | None) -> Classified:
    """The answer for `outputs [labels]`, or `[1]` for a regression."""
    if head.problem is Problem.REGRESSION:
        return Classified(input_index, (), float(outputs[0]))
    scores = probabilities(outputs, head.problem)
    # Stable: of equal ones the first in the order of the labels.
    best = np.argsort(-scores, kind="stable")[: top_k or len(scores)]
    return Classified(input_index, tuple((head.labels[i], float(scores[i])) for i in best))


def tagged(
    input_index: int,
    head: Head,
    outputs: _Rows,
    encoded: EncodedText | None,
    text: str,
) -> Tagged:
    """The answer for `outputs [tokens, labels]`; tokens that the tokenizer added have no answer.

    A word is told once, by its first piece, which is what was trained.
    """
    assert encoded is not None, "only texts are tagged"
    scores = probabilities(outputs, Problem.SINGLE_LABEL)
    tokens: list[tuple[int, int, str, float]] = []
    for word in answered_words(encoded, text):
        best = int(scores[word.place].argmax())
        tokens.append((word.start, word.end, head.labels[best], float(scores[word.place, best])))
    return Tagged(input_index, tuple(tokens), _entities(tokens, text))


def probabilities(outputs: _Rows, problem: Problem) -> _Rows:
    """Of the labels, along the last dimension."""
    exact = outputs.astype(np.float64)
    if problem is Problem.MULTI_LABEL:
        return 1.0 / (1.0 + np.exp(-exact))
    raised = np.exp(exact - exact.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _entities(tokens: Sequence[tuple[int, int, str, float]], text: str) -> tuple[Entity, ...]:
    labels = [label for _, _, label, _ in tokens]
    if not any(label[:2] in {"B-", "I-", "E-", "S-"} for label in labels):
        return ()
    found: list[Entity] = []
    for span in spans_of(labels):
        start, end = tokens[span.first][0], tokens[span.end - 1][1]
        score = float(np.mean([score for *_, score in tokens[span.first : span.end]]))
        found.append(Entity(span.label, start, end, text[start:end], score))
    return tuple(found)
