"""What is counted in the rows of a dataset: lengths beside numpy's, labels, repeated and contradicting rows."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from finetuned_service.datasets.dataset_report import ReportBuilder, length_summary
from finetuned_service.datasets.fingerprint import fingerprint
from finetuned_service.datasets.kinds import DatasetRow, LabelledImage
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.text.values import (
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    Pair,
    PromptCompletion,
    Text,
)
from finetuned_service.vocabulary import DatasetReport, LengthSummary
from hypothesis import given
from hypothesis import strategies as st


def report(*rows: DatasetRow) -> DatasetReport:
    builder = ReportBuilder(DataLimits())
    for row in rows:
        builder.add(row)
    return builder.report()


@given(lengths=st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_percentiles_are_lengths_that_as_many_rows_do_not_exceed(lengths: list[int]) -> None:
    found = length_summary(array("q", lengths))
    assert {found.median, found.p90, found.p95, found.p99, found.longest} <= set(lengths)
    for part, length in ((0.5, found.median), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99)):
        assert sum(one <= length for one in lengths) >= part * len(lengths) - 1e-9
    assert found.longest == max(lengths)
    assert found.mean == pytest.approx(np.mean(lengths))


def test_no_lengths() -> None:
    assert length_summary(array("q")) == LengthSummary()


def test_labels_and_their_balance() -> None:
    found = report(*[LabelledText(f"t{n}", "a") for n in range(11)], LabelledText("u", "b"))
    assert [(count.label, count.count) for count in found.labels] == [("a", 11), ("b", 1)]
    assert found.imbalance_ratio == 11.0
    assert found.warnings == ("the label 'a' is 11 times as frequent as 'b' (11 and 1 rows)",)
    several = report(MultiLabelText("t", ("a", "b")), MultiLabelText("u", ("b",)), MultiLabelText("v", ()))
    assert [(count.label, count.count) for count in several.labels] == [("b", 2), ("a", 1)]
    tagged = report(LabelledTokens(("x", "y", "z"), ("O", "B-P", "O")))
    assert [(count.label, count.count) for count in tagged.labels] == [("O", 2), ("B-P", 1)]


def test_labels_that_differ_in_spelling_and_a_single_label_are_warned_of() -> None:
    found = report(LabelledText("t", "New York"), LabelledText("u", "new york"), LabelledText("v", "newYork"))
    assert found.warnings == (
        "the labels 'New York', 'new york', 'newYork' differ only by case or white space, and are different classes",
    )
    assert report(LabelledText("t", "a")).warnings == (
        "all rows have the one label 'a': there is nothing to tell apart",
    )


def test_repeated_and_contradicting_rows() -> None:
    found = report(
        LabelledText("A  b", "x"),
        LabelledText("a b", "x"),
        LabelledText("\uff41 b", "y"),
        LabelledText("c", "y"),
    )
    assert (found.duplicate_rows, found.conflicting_rows) == (2, 1)
    assert found.warnings == ("1 rows say something else about what another row is about",)
    assert report(Text("a"), Text("A "), Text("b")).duplicate_rows == 1


def test_a_fingerprint_is_about_what_is_read() -> None:
    assert fingerprint(PromptCompletion("ab", "c")) != fingerprint(PromptCompletion("a", "bc"))
    assert fingerprint(Pair("a", "b")) != fingerprint(Pair("b", "a"))
    assert fingerprint(LabelledImage(b"1", "x")) == fingerprint(LabelledImage(b"1", "y"))
    assert fingerprint(LabelledImage(b"1", "x")) != fingerprint(LabelledImage(b"2", "x"))
    assert fingerprint(LabelledText("a", "x", "b")) != fingerprint(LabelledText("a b", "x"))
