"""The held-out part: repeatable, the right size, and without rows that are trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.job_rows import JobRows, read_job_rows
from finetuned_service.datasets.kinds import AnyRow, labels_of
from finetuned_service.datasets.rows import to_json
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import (
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    PromptCompletion,
    Row,
    Text,
)
from hypothesis import given
from hypothesis import strategies as st

MANY = [PromptCompletion(f"prompt {n}", f"completion {n}") for n in range(300)]
FRACTIONS = st.floats(0.01, 0.5)


def test_sizes_and_order() -> None:
    train, held_out = split(MANY, 0.1, seed=0)
    assert (len(train), len(held_out)) == (270, 30)
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert set(train) | set(held_out) == set(range(300))


def test_the_choice_is_fixed_by_the_seed() -> None:
    """Pinned: a resumed job must evaluate on the rows that it never saw."""
    assert split(MANY[:20], 0.2, seed=0)[1] == [12, 13, 15, 18]
    assert split(MANY, 0.1, seed=0) == split(MANY, 0.1, seed=0)
    assert split(MANY, 0.1, seed=0) != split(MANY, 0.1, seed=1)


def test_it_is_spread_over_the_file() -> None:
    _, held_out = split(MANY, 0.5, seed=3)
    assert 50 < sum(index < 150 for index in held_out) < 100


@given(
    texts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40),
    fraction=FRACTIONS,
    seed=st.integers(0, 2**63 - 1),
)
def test_no_row_is_on_both_sides(texts: list[str], fraction: float, seed: int) -> None:
    rows: list[Row] = [Text(text) for text in texts]
    if len(set(texts)) < 2:
        with pytest.raises(InvalidData, match="all the same"):
            split(rows, fraction, seed)
        return
    train, held_out = split(rows, fraction, seed)
    assert train
    assert held_out
    assert sorted(train + held_out) == list(range(len(rows)))
    assert not {texts[index] for index in train} & {texts[index] for index in held_out}
    smallest = min(texts.count(text) for text in texts)
    assert len(held_out) <= max(smallest, round(fraction * len(rows)), 1)


@given(count=st.integers(2, 200), fraction=FRACTIONS, seed=st.integers(0, 1000))
def test_different_rows_give_exactly_the_fraction(count: int, fraction: float, seed: int) -> None:
    _, held_out = split(MANY[:count], fraction, seed)
    assert len(held_out) == min(max(1, round(fraction * count)), count - 1)


@given(order=st.permutations(range(30)), seed=st.integers(0, 1000))
def test_the_order_of_the_file_does_not_count(order: list[int], seed: int) -> None:
    _, held_out = split(MANY[:30], 0.2, seed)
    _, of_shuffled = split([MANY[index] for index in order], 0.2, seed)
    assert set(held_out) == {order[index] for index in of_shuffled}


def test_rows_added_later_hardly_move_the_others() -> None:
    _, before = split(MANY[:270], 0.1, seed=0)
    _, after = split(MANY, 0.1, seed=0)
    assert len(set(before) - set(after)) <= 5


def test_nothing_is_held_out_of_a_fraction_of_zero() -> None:
    assert split(MANY[:3], 0.0, seed=0) == ([0, 1, 2], [])
    assert split(MANY[:1], 0.0, seed=0) == ([0], [])


@pytest.mark.parametrize("rows", [MANY[:1], MANY[:1] * 5])
def test_rows_that_are_all_the_same_cannot_be_split(rows: list[Row]) -> None:
    with pytest.raises(InvalidData, match="set holdout_fraction to 0"):
        split(rows, 0.1, seed=0)


def test_a_large_group_of_equal_rows_stays_in_training() -> None:
    rows: list[Row] = [Text("same")] * 50 + [Text(str(n)) for n in range(50)]
    train, held_out = split(rows, 0.1, seed=0)
    assert set(range(50)) <= set(train)
    assert len(held_out) == 10


def test_rows_that_a_reader_takes_for_the_same_stay_together() -> None:
    rows: list[Row] = [Text(f"{text} {n}") for n in range(30) for text in ("a", "A ", "\uff41")]
    train, held_out = split(rows, 0.2, seed=0)
    assert len(held_out) == 18
    assert not {index // 3 for index in train} & {index // 3 for index in held_out}


COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 40), min_size=1)


@given(counts=COUNTS, fraction=FRACTIONS, seed=st.integers(0, 1000))
def test_every_label_is_held_out_in_its_share(counts: dict[str, int], fraction: float, seed: int) -> None:
    rows = [LabelledText(f"{label} {n}", label) for label, count in counts.items() for n in range(count)]
    _, held_out = split(rows, fraction, seed)
    held = Counter(rows[index].label for index in held_out)
    assert held == {label: min(max(1, round(fraction * count)), count - 1) for label, count in counts.items()}


def test_texts_with_several_labels_give_a_share_of_each() -> None:
    rows = [
        MultiLabelText(
            f"t{n}", tuple(label for label, every in (("a", 1), ("b", 3), ("c", 25)) if n % every == 0)
        )
        for n in range(200)
    ]
    train, held_out = split(rows, 0.25, seed=0)
    for part, share in ((train, 0.75), (held_out, 0.25)):
        counts = Counter(label for index in part for label in rows[index].labels)
        assert {"a", "b", "c"} == set(counts)
        for label, whole in (("a", 200), ("b", 67), ("c", 8)):
            assert abs(counts[label] - share * whole) <= max(2, 0.1 * whole)


def test_the_same_text_stays_on_one_side_whatever_its_label() -> None:
    rows = [LabelledText(f"t{n // 2}", "ab"[n % 2]) for n in range(40)]
    train, held_out = split(rows, 0.2, seed=0)
    assert not {rows[index].text for index in train} & {rows[index].text for index in held_out}


def test_labels_that_cannot_be_held_out_are_named() -> None:
    rows = [LabelledText(f"t{n}", "a") for n in range(9)] + [LabelledText("u", "b"), LabelledText("U ", "b")]
    with pytest.raises(InvalidData, match="the label 'b' has no two different rows"):
        split(rows, 0.1, seed=0)
    assert split(rows, 0.0, seed=0)[1] == []


def test_every_label_of_several_is_on_both_sides_or_the_split_is_refused() -> None:
    """Each label is in two texts, so holding one out takes another label's share with it."""
    rows = [
        MultiLabelText(text, tuple(pair))
        for text, pair in zip("tuvwxy", ("ab", "ac", "bd", "cd", "ef", "ef"), strict=True)
    ]
    refused = 0
    for seed in range(30):
        try:
            train, held_out = split(rows, 0.5, seed)
        except InvalidData:
            refused += 1
            continue
        parts = [{label for index in part for label in rows[index].labels} for part in (train, held_out)]
        assert parts == [set("abcdef")] * 2
        assert sorted(train + held_out) == list(range(6))
    assert refused < 30


def test_few_rows_with_several_labels_are_split_where_they_can_be() -> None:
    rows = [
        MultiLabelText(text, tuple(labels))
        for text, labels in zip("tuvw", ("bc", "ac", "a", "b"), strict=True)
    ]
    for seed in range(100):
        train, held_out = split(rows, 0.1, seed)
        for part in (train, held_out):
            assert {label for index in part for label in rows[index].labels} == set("abc")
        assert split(rows, 0.1, seed) == (train, held_out)


def write(path: Path, rows: list[AnyRow]) -> Path:
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def read(
    tmp_path: Path, kind: type[AnyRow], rows: list[AnyRow], held: list[AnyRow] | None
) -> JobRows[AnyRow]:
    train_path = write(tmp_path / "train", rows)
    eval_path = None if held is None else write(tmp_path / "eval", held)
    return read_job_rows(kind, train_path, eval_path, holdout_fraction=0.5, seed=0)


def test_rows_of_a_job_and_the_classes_of_its_head(tmp_path: Path) -> None:
    rows = [LabelledTokens((f"w{n}", "x"), ("B-P", "I-P" if n else "O")) for n in range(4)]
    found = read(tmp_path, LabelledTokens, rows, None)
    assert (len(found.train), len(found.held_out)) == (2, 2)
    assert found.classes == ("B-P", "I-P", "O")
    given_ = read(tmp_path, LabelledTokens, rows, [LabelledTokens(("y",), ("S-P",))])
    assert (len(given_.train), len(given_.held_out)) == (4, 1)
    assert given_.classes == ("B-P", "I-P", "O", "S-P")
    assert labels_of(rows[0]) == ("P",)


def test_labels_that_one_side_lacks_are_named(tmp_path: Path) -> None:
    a, b, c = (LabelledText(label, label) for label in "abc")
    with pytest.raises(InvalidData, match=r"eval_dataset lacks the labels 'b', 'c', so nothing would tell"):
        read(tmp_path, LabelledText, [a, b, c], [a])
    with pytest.raises(InvalidData, match=r"eval_dataset has the label 'c', which no training row has"):
        read(tmp_path, LabelledText, [a, b], [a, b, c])
