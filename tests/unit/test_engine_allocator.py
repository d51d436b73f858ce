"""Ranges of the KV arena and of the adapter banks: no overlap, no leak, no hole left unmerged."""

from __future__ import annotations

import pytest
from finetuned_service.engine.allocator import Range, RangeAllocator
from hypothesis import given
from hypothesis import strategies as st


@given(
    capacity=st.integers(0, 40),
    operations=st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 100))),
)
def test_any_sequence_of_operations_keeps_ranges_apart_and_loses_nothing(capacity, operations):
    allocator = RangeAllocator(capacity)
    owner: list[Range | None] = [None] * capacity
    live: list[Range] = []
    for allocate, length, pick in operations:
        if allocate:
            longest_hole = max((len(hole) for hole in holes(owner)), default=0)
            taken = allocator.allocate(length)
            assert (taken is not None) == (longest_hole >= length)
            if taken is not None:
                assert owner[taken.start : taken.end] == [None] * length
                owner[taken.start : taken.end] = [taken] * length
                live.append(taken)
        elif live:
            gone = live.pop(pick % len(live))
            allocator.free(gone)
            owner[gone.start : gone.end] = [None] * gone.length
        assert allocator.used == sum(taken.length for taken in live)
    for taken in live:
        allocator.free(taken)
    assert allocator.used == 0
    assert allocator.can_allocate(capacity) or capacity == 0


def holes(owner):
    """The runs of free units, as lists of their positions."""
    runs: list[list[int]] = [[]]
    for position, taken in enumerate(owner):
        if taken is None:
            runs[-1].append(position)
        else:
            runs.append([])
    return [run for run in runs if run]


def test_first_hole_is_taken():
    allocator = RangeAllocator(10)
    first, second = allocator.allocate(3), allocator.allocate(3)
    allocator.free(first)
    assert allocator.allocate(2) == Range(0, 2)
    assert allocator.allocate(2) == Range(6, 2)
    assert second == Range(3, 3)


def test_a_copy_is_independent():
    allocator = RangeAllocator(4)
    twin = allocator.copy()
    twin.allocate(4)
    assert (allocator.used, twin.used) == (0, 4)


def test_a_range_is_given_back_once():
    allocator = RangeAllocator(4)
    taken = allocator.allocate(2)
    allocator.free(taken)
    with pytest.raises(ValueError, match="not allocated"):
        allocator.free(taken)
    with pytest.raises(ValueError, match="not allocated"):
        allocator.free(Range(1, 1))


def test_empty_ranges_do_not_exist():
    with pytest.raises(ValueError, match="at least one"):
        RangeAllocator(4).allocate(0)
