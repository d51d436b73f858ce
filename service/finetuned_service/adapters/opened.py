"""A stored adapter's files, opened for whoever computes with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from finetuned_service.adapters.files import (
    WEIGHTS_FILE,
    check_entries,
    check_names,
    read_config,
    read_raw_header,
)
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts import Layout, parse_layout
from finetuned_service.adapters.site_ops import SiteOp
from finetuned_service.digests import TensorInfo, mapped_tensors, parse_safetensors_header, tensors_digest
from finetuned_service.errors import InvalidAdapterFiles

_ANY_RANK = 2**31
"""Residency refuses what the device cannot hold, and says how much room there is."""

_KINDS = 64
"""So many configurations and headers are remembered: what they say, not the numbers. About 200 kB each."""
_KIND_BYTES = 512 * 1024
"""A header that is longer is read every time: who pads it must not fill the memory."""


class MappedTensor(NamedTuple):
    """One tensor of a mapped safetensors file."""

    dtype: str
    """F32, F16 or BF16."""
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class OpenAdapter:
    """A stored adapter whose files are mapped; its views end with the block that opened it."""

    layout: Layout
    modules: Mapping[str, Collection[str]]
    """Full names of the modules it changes, sorted → their parts in the layout."""
    tensors: Mapping[str, MappedTensor]
    """By name in the file."""
    base: BaseGeometry

    def ops(self, module: str) -> tuple[SiteOp[MappedTensor], ...]:
        """What happens at one of the modules."""
        stored = self.layout.ops(module, self.modules[module], self.base)
        return tuple(op.over(self.tensors.__getitem__) for op in stored)


@dataclass(frozen=True, slots=True)
class _Understood:
    """What a configuration and a header say of an adapter of the base: all but its numbers."""

    layout: Layout
    infos: list[TensorInfo]
    modules: Mapping[str, Collection[str]]
    described: Mapping[str, object]


class AdapterOpener:
    """Opens the adapters of one base. They are many and alike: two with the same configuration and header are
    checked and understood once.

    Args:
        geometry: of the base.
    """

    def __init__(self, geometry: BaseGeometry) -> None:
        self._geometry = geometry
        self._understand = lru_cache(_KINDS)(self._read)
        self._count = lru_cache(_KINDS)(_elements)

    def elements(self, directory: Path) -> int:
        """How many numbers an adapter has, by the header of its weights.

        Raises:
            InvalidAdapterFiles: the header is none.
            OSError: it cannot be read.
        """
        header, size_bytes = read_raw_header(directory)
        count = self._count if len(header) <= _KIND_BYTES else _elements
        return count(header, size_bytes)

    @contextmanager
    def open(self, directory: Path, digest: str) -> Generator[OpenAdapter]:
        """The files of an adapter that was checked when it was stored, and that are still those.

        Names and shapes are looked at again, for whoever computes with them trusts them; that all numbers are
        finite follows from the digest. That is computed while the block runs: what the block made is worth
        something once it has ended without an error.

        Raises:
            InvalidAdapterFiles: they do not fit the base, or, at the end of the block, are another adapter's than
                `digest` says.
            OSError: they cannot be read.
        """
        check_entries(directory)
        config, (header, size_bytes) = read_config(directory), read_raw_header(directory)
        understand = self._understand if len(config) + len(header) <= _KIND_BYTES else self._read
        known = understand(config, header, size_bytes)
        with (
            mapped_tensors(directory / WEIGHTS_FILE, known.infos) as tensors,
            ThreadPoolExecutor(1, "adapter-digest") as beside,  # at the priority of the thread that opens
        ):
            running = beside.submit(tensors_digest, tensors, known.described)
            try:
                by_name = {name: MappedTensor(dtype, shape, data) for name, dtype, shape, data in tensors}
                yield OpenAdapter(known.layout, known.modules, by_name, self._geometry)
            finally:
                found = running.result()  # it reads the pages that end with this block
                if found != digest:  # which explains whatever went wrong in the block
                    raise InvalidAdapterFiles(
                        f"the files of adapter {digest} now have the digest {found}; import it again",
                        metadata={"adapter_digest": digest},
                    )

    def _read(self, config: bytes, header: bytes, size_bytes: int) -> _Understood:
        layout = parse_layout(config)
        infos = parse_safetensors_header(WEIGHTS_FILE, header, size_bytes)
        modules = check_names(layout, infos, self._geometry, _ANY_RANK)
        return _Understood(layout, infos, modules, layout.spelled_out(modules))


def _elements(header: bytes, size_bytes: int) -> int:
    infos = parse_safetensors_header(WEIGHTS_FILE, header, size_bytes)
    return sum(math.prod(info.shape) for info in infos)
