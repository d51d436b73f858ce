"""Contiguous ranges out of a fixed space: KV tokens of a sequence, rank rows of an adapter.

Pure logic. First fit by position, neighbours coalesce on free. First fit keeps the live ranges near
the start, so that one slice covers them and untouched pages of the arena behind stay untouched.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Units `[start, start + length)` of the space."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class RangeAllocator:
    """Owns `[0, capacity)`; every unit is free or in exactly one allocated range."""

    def __init__(self, capacity: int, granularity: int = 1) -> None:
        """Ranges begin at multiples of `granularity` and are rounded up to them; capacity is rounded down."""
        capacity -= capacity % granularity
        self.capacity = capacity
        self._granularity = granularity
        self._free = [Range(0, capacity)] if capacity else []
        self._used: dict[int, Range] = {}

    @property
    def used(self) -> int:
        """Units in allocated ranges."""
        return sum(taken.length for taken in self._used.values())

    def copy(self) -> RangeAllocator:
        """An independent allocator in the same state, to try a plan on."""
        twin = RangeAllocator(self.capacity, self._granularity)
        twin._free = list(self._free)
        twin._used = dict(self._used)
        return twin

    def can_allocate(self, length: int) -> bool:
        return any(hole.length >= self._rounded(length) for hole in self._free)

    def allocate(self, length: int) -> Range | None:
        """The first hole's first units, at least `length`, or None if no hole is that long.

        Raises:
            ValueError: if `length` is not positive.
        """
        if length < 1:
            raise ValueError(f"length is {length}; a range has at least one unit")
        length = self._rounded(length)
        for index, hole in enumerate(self._free):
            if hole.length >= length:
                taken = Range(hole.start, length)
                rest = Range(taken.end, hole.length - length)
                self._free[index : index + 1] = [rest] if rest.length else []
                self._used[taken.start] = taken
                return taken
        return None

    def shrink(self, taken: Range, length: int) -> Range:
        """Keep the first units of an allocated range, at least `length` of them, and free the rest.

        Raises:
            ValueError: if it is not allocated, or `length` is not from 1 to its own.
        """
        if not 1 <= length <= taken.length:
            raise ValueError(f"length is {length}; allowed: 1 to {taken.length}")
        kept = Range(taken.start, self._rounded(length))
        if kept == taken:
            return taken
        self.free(taken)
        # What was just freed is a hole that begins where it began, or goes on before: take its place again.
        index = next(i for i, hole in enumerate(self._free) if hole.start <= kept.start < hole.end)
        hole = self._free[index]
        parts = (Range(hole.start, kept.start - hole.start), Range(kept.end, hole.end - kept.end))
        self._free[index : index + 1] = [part for part in parts if part.length]
        self._used[kept.start] = kept
        return kept

    def _rounded(self, length: int) -> int:
        return -(-length // self._granularity) * self._granularity

    def free(self, taken: Range) -> None:
        """Give back a range that `allocate` returned.

        Raises:
            ValueError: if it is not allocated (given back twice, or another's).
        """
        if self._used.get(taken.start) != taken:
            raise ValueError(f"{taken} is not allocated")
        del self._used[taken.start]
        merged = taken
        rest: list[Range] = []
        for hole in self._free:
            if hole.end == merged.start:
                merged = Range(hole.start, hole.length + merged.length)
            elif merged.end == hole.start:
                merged = Range(merged.start, merged.length + hole.length)
            else:
                rest.append(hole)
        self._free = sorted([*rest, merged], key=lambda hole: hole.start)
