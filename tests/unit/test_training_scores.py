"""Figures of tasks against scikit-learn and scipy; spans of tags against conlleval's rules."""

from __future__ import annotations

import numpy as np
import pytest
from finetuned_service.text.entities import Span, spans_of
from finetuned_service.training.heads.confusion import MOST_ROWS, confusion_matrix
from finetuned_service.training.heads.scores import accuracy, entity_f1, f1_scores, pearson, spearman
from scipy import stats
from sklearn import metrics

RANDOM = np.random.default_rng(0)


def test_accuracy_and_f1_of_one_label() -> None:
    expected, found = RANDOM.integers(0, 5, 200), RANDOM.integers(0, 5, 200)
    flags = np.arange(6)  # the last is nobody's
    macro, micro = f1_scores(expected[:, None] == flags, found[:, None] == flags)
    assert accuracy(expected, found) == pytest.approx(metrics.accuracy_score(expected, found))
    by_sklearn = {
        average: metrics.f1_score(expected, found, labels=flags, average=average, zero_division=0)
        for average in ("macro", "micro")
    }
    assert (macro, micro) == pytest.approx((by_sklearn["macro"], by_sklearn["micro"]))


def test_a_confusion_matrix_counts_every_row() -> None:
    expected, found = RANDOM.integers(0, 5, 200), RANDOM.integers(0, 6, 200)
    names = [f"label {number}" for number in range(6)]  # the last is right nowhere
    matrix = confusion_matrix(expected, found, names)
    assert (matrix.labels, matrix.other_labels) == (tuple(names), 0)
    by_sklearn = metrics.confusion_matrix(expected, found, labels=range(6))
    assert matrix.counts == tuple(by_sklearn.ravel())


def test_of_many_labels_the_rare_ones_share_a_row_and_nothing_is_lost() -> None:
    labels = MOST_ROWS + 30
    expected = np.concatenate([np.arange(labels), np.repeat(np.arange(20, labels - 11), 3)])
    found = RANDOM.integers(0, labels, len(expected))
    names = [f"label {number:03}" for number in range(labels)]
    matrix = confusion_matrix(expected, found, names)
    kept = list(range(20, labels - 11))
    assert matrix.labels == tuple(names[place] for place in kept)
    assert matrix.other_labels == labels - len(kept)
    merged = [
        [kept.index(place) if place in kept else len(kept) for place in side] for side in (expected, found)
    ]
    assert matrix.counts == tuple(metrics.confusion_matrix(*merged, labels=range(MOST_ROWS)).ravel())
    assert sum(matrix.counts) == len(expected)


def test_f1_of_several_labels() -> None:
    expected, found = RANDOM.random((100, 4)) > 0.6, RANDOM.random((100, 4)) > 0.5
    macro, micro = f1_scores(expected, found)
    assert macro == pytest.approx(metrics.f1_score(expected, found, average="macro"))
    assert micro == pytest.approx(metrics.f1_score(expected, found, average="micro"))
    nothing = np.zeros((3, 2), dtype=bool)
    assert f1_scores(nothing, nothing) == (0.0, 0.0)


def test_correlations_with_ties() -> None:
    expected = RANDOM.integers(0, 6, 80).astype(float)
    found = expected + RANDOM.normal(0, 2, 80).round(1)
    assert pearson(expected, found) == pytest.approx(stats.pearsonr(expected, found).statistic)
    assert spearman(expected, found) == pytest.approx(stats.spearmanr(expected, found).statistic)
    assert spearman(expected, np.ones(80)) == 0.0


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O", [Span("A", 1, 3)]),
        ("B-A B-A I-A", [Span("A", 0, 1), Span("A", 1, 3)]),
        ("I-A I-A I-B", [Span("A", 0, 2), Span("B", 2, 3)]),
        ("B-A I-B O I-B", [Span("A", 0, 1), Span("B", 1, 2), Span("B", 3, 4)]),
        ("B-A I-A E-A S-B E-B", [Span("A", 0, 3), Span("B", 3, 4), Span("B", 4, 5)]),
        ("A A O B", [Span("A", 0, 2), Span("B", 3, 4)]),
        ("O O", []),
    ],
)
def test_spans(tags: str, spans: list[Span]) -> None:
    assert spans_of(tags.split()) == spans


def test_entities_count_whole() -> None:
    right = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    found = [["B-A", "O", "O", "B-B"], ["O", "B-A"]]
    # 3 wanted, 3 given, 2 hits: precision and recall are 2/3.
    assert entity_f1(right, found) == pytest.approx(2 / 3)
    assert entity_f1([["O"]], [["O"]]) == 1.0
