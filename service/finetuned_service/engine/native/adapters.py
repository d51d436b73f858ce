"""Adapters as the native path keeps them: a budget of bytes, and which rows of a step are whose.

Packed form and HOST form are one: an adapter that is read is ready to serve, and placing it copies nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.native.packing import AdapterPacker, PackedAdapter


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An adapter that may serve."""

    adapter: PackedAdapter
    position: int

    @property
    def order(self) -> tuple[bool, int]:
        """Rows are sorted by it, so that those of one adapter are neighbours, as are those with the base's weights."""
        change = self.adapter.change
        return change is not None and change.multiplies_apart, self.position

    @property
    def size_bytes(self) -> int:
        return self.adapter.size_bytes

    @property
    def shared_bytes(self) -> int:
        return self.adapter.size_bytes


@final
class NativeAdapters:
    """`memory.Memory` of the native path: a budget of bytes."""

    fills_at_once = True

    def __init__(self, reader: AdapterReader, packer: AdapterPacker, budget_bytes: int) -> None:
        self._reader = reader
        self._packer = packer
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._positions = itertools.count()

    def size_bytes(self, handle: AdapterHandle) -> int:
        return self._reader.size_bytes(handle)

    def read(self, handle: AdapterHandle) -> PackedAdapter:
        with self._reader.open(handle) as opened:
            return self._packer.pack(opened, handle.digest)

    def fits(self, weights: PackedAdapter) -> bool:
        return weights.size_bytes <= self._budget_bytes

    def plan(self, weights: PackedAdapter, victims: Sequence[Placed]) -> Sequence[Placed] | None:
        free_bytes = self._budget_bytes - self._used_bytes
        for gone, victim in enumerate(victims):
            if free_bytes >= weights.size_bytes:
                return victims[:gone]
            free_bytes += victim.size_bytes
        return victims if free_bytes >= weights.size_bytes else None

    def place(self, weights: PackedAdapter) -> Placed:
        self._used_bytes += weights.size_bytes
        return Placed(weights, next(self._positions))

    def fill(self, place: Placed, weights: PackedAdapter) -> None:
        """It lies there already."""

    def vacate(self, place: Placed) -> None:
        self._used_bytes -= place.size_bytes


def neighbours(places: Iterable[Placed | None]) -> list[tuple[int, int, Placed]]:
    """Runs of rows with the same adapter as (first row, rows, adapter); rows of the plain base are in none."""
    runs: list[tuple[int, int, Placed]] = []
    row = 0
    for place, group in itertools.groupby(places):
        rows = len(list(group))
        if place is not None:
            runs.append((row, rows, place))
        row += rows
    return runs
