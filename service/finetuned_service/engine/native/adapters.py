"""LoRA adapters as the native decoder reads them: each packed into one block of memory, ranks unpadded.

Packed form and HOST form are one: an adapter that is read is ready to serve, and placing it copies nothing.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from finetuned_service.adapters.opened import OpenAdapter
from finetuned_service.adapters.site_ops import AddLowRank
from finetuned_service.engine.adapter_files import AdapterReader, not_finite
from finetuned_service.engine.lazy_pages import ReadyBlocks
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.native.library import (
    PANEL,
    SITES,
    STORED_DTYPES,
    Library,
    LoraPairStruct,
    LoraSourceStruct,
)
from finetuned_service.errors import Unimplemented


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

    @property
    def shared_bytes(self) -> int:
        return self.adapter.size_bytes


@final
class NativeAdapters:
    """`memory.Memory` of the native path: a budget of bytes."""

    def __init__(self, library: Library, reader: AdapterReader, layers: int, budget_bytes: int) -> None:
        self._library = library
        self._reader = reader
        self._layers = layers
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._positions = itertools.count()
        self._blocks = ReadyBlocks()

    def size_bytes(self, handle: AdapterHandle) -> int:
        return self._reader.size_bytes(handle)

    def read(self, handle: AdapterHandle) -> PackedAdapter:
        with self._reader.open(handle) as opened:
            _refuse_other_ops(opened, handle.digest)
            return pack_adapter(self._library, opened, self._layers, handle.digest, self._blocks.take)

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


def pack_adapter(
    library: Library, opened: OpenAdapter, layers: int, digest: str, memory: Callable[[int], Tensor]
) -> PackedAdapter:
    """Pack a stored adapter for a base of `layers` layers; the scaling is folded into B in float32.

    An odd rank gets a rank of zeros beside it: products run over pairs.

    Raises:
        InvalidAdapterFiles: if it is not finite in bfloat16.
    """
    named = [_sources(opened, module) for module in opened.modules]
    block = memory(sum(2 * _elements(source) for source in named))
    pairs = (LoraPairStruct * (layers * len(SITES)))()
    start = block.data_ptr()
    for module, source in zip(opened.modules, named, strict=True):
        rank = source.rank + source.rank % 2
        source.packed_a, source.packed_b = start, start + 2 * rank * source.inputs
        pairs[site_index(module)] = LoraPairStruct(source.packed_a, source.packed_b, rank)
        start += 2 * _elements(source)
    wrong = library.pack_lora((LoraSourceStruct * len(named))(*named), len(named))
    if wrong >= 0:
        raise not_finite(digest, torch.bfloat16)
    return PackedAdapter(ctypes.cast(pairs, ctypes.POINTER(LoraPairStruct)), block, len(named))


def _refuse_other_ops(opened: OpenAdapter, digest: str) -> None:
    if not all(isinstance(op, AddLowRank) for module in opened.modules for op in opened.ops(module)):
        raise Unimplemented.feature(
            f"adapter {digest}, a {opened.layout.method} that does more to its base than add low-rank updates, on "
            "the native path",
            "LoRA and rsLoRA there; start the server with compute 'plain' (finetuned serve --compute plain), which "
            "serves it, slower",
        )


def _sources(opened: OpenAdapter, module: str) -> LoraSourceStruct:
    """One site of the mapped files; valid as long as they are open."""
    (update,) = opened.ops(module)
    assert isinstance(update, AddLowRank), "others are refused before they are packed"
    a, b = update.a, update.b
    return LoraSourceStruct(
        a=_address(a.data),
        b=_address(b.data),
        rank=a.shape[0],
        inputs=a.shape[1],
        outputs=b.shape[0],
        scaling=update.scaling,
        stored=STORED_DTYPES[a.dtype],
    )


def _address(data: memoryview) -> int:
    return np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]


def _elements(source: LoraSourceStruct) -> int:
    rank = source.rank + source.rank % 2
    return rank * (source.inputs + -(-source.outputs // PANEL) * PANEL)


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
