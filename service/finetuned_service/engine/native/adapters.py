"""LoRA adapters as the native decoder reads them: each packed into one block of memory, ranks unpadded.

Packed form and HOST form are one: an adapter that is read is ready to serve, and placing it copies nothing.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.native.library import PANEL, SITES, Library, LoraPairStruct
from finetuned_service.engine.peft_files import AdapterReader


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """An adapter in memory. `pairs` points into `block`, one entry for each site of each layer."""

    pairs: Any
    block: Tensor
    modules: int

    @property
    def size_bytes(self) -> int:
        return self.block.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An adapter that may serve. Rows are sorted by `position`, so that those of one adapter are neighbours."""

    adapter: PackedAdapter
    position: int

    @property
    def size_bytes(self) -> int:
        return self.adapter.size_bytes


@final
class NativeAdapters:
    """`memory.Memory` of the native path: a budget of bytes."""

    shares_host_copy = True

    def __init__(self, library: Library, reader: AdapterReader, layers: int, budget_bytes: int) -> None:
        self._library = library
        self._reader = reader
        self._layers = layers
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._positions = itertools.count()

    def size_bytes(self, handle: AdapterHandle) -> int:
        return self._reader.size_bytes(handle)

    def read(self, handle: AdapterHandle) -> PackedAdapter:
        weights = self._reader.read(handle)
        return pack_adapter(self._library, weights.pairs, self._layers)

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


def site_index(name: str) -> int:
    """Of a site such as `model.layers.3.mlp.up_proj` in `pairs`."""
    _, layer, _, site = name.rsplit(".", maxsplit=3)
    return int(layer) * len(SITES) + SITES.index(site)


@torch.inference_mode()
def pack_adapter(
    library: Library, weights: Mapping[str, tuple[Tensor, Tensor]], layers: int
) -> PackedAdapter:
    """Pack `a [r, in]` and `b [r, out]` (scaling folded in) of each named site, both bfloat16.

    An odd rank gets a rank of zeros beside it: products run over pairs.
    """
    shapes = {name: (a.shape[0] + a.shape[0] % 2, a.shape[1], b.shape[1]) for name, (a, b) in weights.items()}
    block = torch.zeros(sum(map(_elements, shapes.values())), dtype=torch.bfloat16)
    pairs = (LoraPairStruct * (layers * len(SITES)))()
    start = block.data_ptr()
    for name, (a, b) in weights.items():
        rank, inputs, outputs = shapes[name]
        a_rows, b_columns = _even(a), _even(b).t().contiguous()
        a_start, b_start = start, start + 2 * rank * inputs
        library.pack_ranks(a_rows.data_ptr(), rank, inputs, a_start)
        library.pack_panels(b_columns.data_ptr(), outputs, rank, b_start)
        pairs[site_index(name)] = LoraPairStruct(a_start, b_start, rank)
        start += 2 * _elements(shapes[name])
    return PackedAdapter(ctypes.cast(pairs, ctypes.POINTER(LoraPairStruct)), block, len(weights))


def _elements(shape: tuple[int, int, int]) -> int:
    rank, inputs, outputs = shape
    return rank * (inputs + -(-outputs // PANEL) * PANEL)


def _even(rows: Tensor) -> Tensor:
    if rows.shape[0] % 2:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return rows.contiguous()


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
