"""One scorer for all learners: what they predicted for the held-out rows, as one number.

Predictions are of plain values: `labels` (a list a row), `numbers` (one a row), `vectors` (`anchors` and `candidates`),
`log_probabilities` (a number a row, or two of a pair: chosen and rejected, less those before training), `answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from finetuned_service.training.heads.scores import entity_f1
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

Predictions = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

NEAREST = 10
LOWER_IS_BETTER = frozenset({"loss"})


def score(metric: str, predictions: Predictions, rows: Rows) -> float:
    """A study's figure.

    Raises:
        ValueError: not as many predictions as rows.
    """
    return METRICS[metric](predictions, rows)


def accuracy(predictions: Predictions, rows: Rows) -> float:
    return float(accuracy_score(*_labels(predictions, rows)))


def macro_f1(predictions: Predictions, rows: Rows) -> float:
    return float(f1_score(*_labels(predictions, rows), average="macro"))


def macro_f1_of_several(predictions: Predictions, rows: Rows) -> float:
    """Of each label by itself; one that is neither told nor right counts 0."""
    expected = [set(row["labels"]) for row in rows]
    found = [set(labels) for labels in _counted(predictions["labels"], rows)]
    flags = MultiLabelBinarizer().fit([*expected, *found])
    sides = (flags.transform(expected), flags.transform(found))
    return float(f1_score(*sides, average="macro", zero_division=0.0))


def rank_correlation(predictions: Predictions, rows: Rows) -> float:
    """Spearman's, of the numbers told and the right ones."""
    return float(spearmanr([row["score"] for row in rows], _counted(predictions["numbers"], rows)).statistic)


def entities(predictions: Predictions, rows: Rows) -> float:
    """Micro F1 of whole entities; `tests/unit/test_training_scores.py` has what it is compared with."""
    found = predictions["labels"]
    for tags, row in zip(found, rows, strict=True):
        if len(tags) != len(row["tags"]):
            raise ValueError(f"{len(tags)} tags for {len(row['tags'])} words: {row['tokens']}")
    return entity_f1([row["tags"] for row in rows], found)


def mrr(predictions: Predictions, rows: Rows) -> float:
    """Mean of 1 / the rank of a row's own candidate among all different ones, 0 beyond the tenth; by cosine."""
    anchors, candidates = (
        np.asarray(predictions["vectors"][side], dtype=np.float64) for side in ("anchors", "candidates")
    )
    if not len(anchors) == len(candidates) == len(rows):
        raise ValueError(f"{len(anchors)} and {len(candidates)} vectors for {len(rows)} rows")
    texts = [row["positive"] for row in rows]
    distinct = [texts.index(text) for text in dict.fromkeys(texts)]
    cosines = _unit(anchors) @ _unit(candidates[distinct]).T
    own = np.array([list(dict.fromkeys(texts)).index(text) for text in texts])
    ranks = 1 + (cosines > cosines[np.arange(len(rows)), own][:, None]).sum(1)
    return float(np.where(ranks <= NEAREST, 1 / ranks, 0).mean())


def loss(predictions: Predictions, rows: Rows) -> float:
    """Nats a supervised token."""
    found = _counted(predictions["log_probabilities"], rows)
    return -sum(found) / sum(predictions["supervised_tokens"])


def exact_match(predictions: Predictions, rows: Rows) -> float:
    pairs = zip(predictions["answers"], rows, strict=True)
    return sum(answer.strip() == row["completion"].strip() for answer, row in pairs) / len(rows)


def reward_accuracy(predictions: Predictions, rows: Rows) -> float:
    """The share of pairs whose chosen answer has gained more than the rejected one."""
    found = _counted(predictions["log_probabilities"], rows)
    return sum(chosen > rejected for chosen, rejected in found) / len(found)


METRICS: Mapping[str, Callable[[Predictions, Rows], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "macro_f1_of_several": macro_f1_of_several,
    "spearman": rank_correlation,
    "entity_f1": entities,
    "mrr_at_10": mrr,
    "loss": loss,
    "exact_match": exact_match,
    "reward_accuracy": reward_accuracy,
}


def _labels(predictions: Predictions, rows: Rows) -> tuple[list[str], list[str]]:
    return [row["label"] for row in rows], [label for (label,) in _counted(predictions["labels"], rows)]


def _counted(found: list[Any], rows: Rows) -> list[Any]:
    if len(found) != len(rows):
        raise ValueError(f"{len(found)} predictions for {len(rows)} rows")
    return found


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
