"""The held-out part: repeatable, the right size, and without rows that are trained on."""

from __future__ import annotations

import pytest
from finetuned_service.datasets.holdout import split
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import PromptCompletion, Row, Text
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
