"""Packs adapters for the native decoder: low-rank updates and bottlenecks into one block of memory, ranks unpadded;
whatever else an adapter does goes to `changes.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from finetuned_service.adapters.opened import MappedTensor, OpenAdapter
from finetuned_service.adapters.site_ops import AddLowRank, MapOutput, SiteOp
from finetuned_service.engine.adapter_files import not_finite
from finetuned_service.engine.lazy_pages import ReadyBlocks
from finetuned_service.engine.native.changes import ChangeBuilder, PackedChange
from finetuned_service.engine.native.library import (
    PANEL,
    SITES,
    STORED_DTYPES,
    Library,
    LoraPairStruct,
    LoraSourceStruct,
)
from finetuned_service.engine.native.weights import NativeWeights

_READ_BEHIND_BYTES = 2048
"""What `multiply_update` reads behind the last B, and multiplies with 0: at most 15 pairs of a panel's 32 columns."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """An adapter in memory. `pairs` points into `block`, one entry for each site of each layer."""

    pairs: Any
    block: Tensor
    modules: int
    change: PackedChange | None
    """None if it adds low-rank updates only."""

    @property
    def change_pointer(self) -> Any:
        return None if self.change is None else self.change.pointer

    @property
    def size_bytes(self) -> int:
        return self.block.nbytes + (0 if self.change is None else self.change.size_bytes)


@final
class AdapterPacker:
    """Packs the adapters of one base.

    Args:
        library: the decoder's.
        weights: of the base.
        weight_of: the weight `[out, in]` of a linear module of the base, by its name.
    """

    def __init__(self, library: Library, weights: NativeWeights, weight_of: Callable[[str], Tensor]) -> None:
        self._library = library
        self._weights = weights
        self._weight_of = weight_of
        self._blocks = ReadyBlocks()

    @torch.inference_mode()
    def pack(self, opened: OpenAdapter, digest: str) -> PackedAdapter:
        """Pack a stored adapter; the scaling of an update is folded into B in float32.

        An odd rank gets a rank of zeros beside it: products run over pairs.

        Raises:
            InvalidAdapterFiles: if it is not finite as it is served.
        """
        pairs = (LoraPairStruct * (self._weights.geometry.layers * len(SITES)))()
        places: list[LoraPairStruct] = []
        sources: list[LoraSourceStruct] = []
        others: list[tuple[str, tuple[SiteOp[MappedTensor], ...]]] = []
        for module in opened.modules:
            ops = opened.ops(module)
            for op in ops:
                if isinstance(op, AddLowRank):
                    places.append(pairs[site_index(module)])
                    sources.append(_source(op.a, op.b, op.scaling))
            if not all(isinstance(op, AddLowRank) for op in ops):
                others.append((module, ops))
        builder = ChangeBuilder(self._library, self._weights, self._weight_of) if others else None
        if builder is not None:
            builder.reserve(ops for _, ops in others)
            for module, ops in others:
                builder.add(module, ops)
                for op in ops:
                    if isinstance(op, MapOutput):
                        places.append(builder.bottleneck(module, op))
                        sources.append(_source(op.down, op.up, op.scaling))
        block = self._pack_pairs(places, sources, digest)
        change = None if builder is None else builder.build(digest)
        pointer = ctypes.cast(pairs, ctypes.POINTER(LoraPairStruct))
        return PackedAdapter(pointer, block, len(opened.modules), change)

    def _pack_pairs(
        self, places: list[LoraPairStruct], sources: list[LoraSourceStruct], digest: str
    ) -> Tensor:
        size_bytes = sum(2 * _elements(source) for source in sources) + _READ_BEHIND_BYTES
        block = self._blocks.take(size_bytes) if sources else torch.empty(0, dtype=torch.uint8)
        block[-_READ_BEHIND_BYTES:] = 0
        start = block.data_ptr()
        for place, source in zip(places, sources, strict=True):
            place.rank = source.rank + source.rank % 2
            place.a, place.b = start, start + 2 * place.rank * source.inputs
            source.packed_a, source.packed_b = place.a, place.b
            start += 2 * _elements(source)
        wrong = self._library.pack_lora((LoraSourceStruct * len(sources))(*sources), len(sources))
        if wrong >= 0:
            raise not_finite(digest, torch.bfloat16)
        return block


def site_index(name: str) -> int:
    """Of a site such as `model.layers.3.mlp.up_proj` in `pairs`."""
    _, layer, _, site = name.rsplit(".", maxsplit=3)
    return int(layer) * len(SITES) + SITES.index(site)


def _source(a: MappedTensor, b: MappedTensor, scaling: float) -> LoraSourceStruct:
    """One pair of the mapped files; valid as long as they are open."""
    return LoraSourceStruct(
        a=_address(a.data),
        b=_address(b.data),
        rank=a.shape[0],
        inputs=a.shape[1],
        outputs=b.shape[0],
        scaling=scaling,
        stored=STORED_DTYPES[a.dtype],
    )


def _address(data: memoryview) -> int:
    return np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]


def _elements(source: LoraSourceStruct) -> int:
    rank = source.rank + source.rank % 2
    return rank * (source.inputs + -(-source.outputs // PANEL) * PANEL)
