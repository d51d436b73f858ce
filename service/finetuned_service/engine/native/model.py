"""The native path: a Llama-like base in bfloat16, its steps computed by `source/forward.h`.

One call a step, without the interpreter's lock. What a row computes does not depend, in any bit, on the rows
beside it, on how its prompt was cut into chunks, or on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import byref, c_int32
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.load import load_base, stored_tensors
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.attention import require_full_attention
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.draws import LEAST_DIVISOR, refuse_none_drawn
from finetuned_service.engine.lazy_pages import PagesAhead, huge_page_bytes
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.model import end_token_ids, fingerprint
from finetuned_service.engine.native.adapters import NativeAdapters, Placed, neighbours
from finetuned_service.engine.native.geometry import check_geometry
from finetuned_service.engine.native.library import (
    PANEL,
    DrawStruct,
    Library,
    SegmentStruct,
    SpanStruct,
    StepStruct,
)
from finetuned_service.engine.native.packing import AdapterPacker
from finetuned_service.engine.native.weights import NativeWeights
from finetuned_service.engine.prefix_cache import PrefixCopy
from finetuned_service.engine.runner import PlaceOf, StepLogits
from finetuned_service.engine.sequence import Sequence as TokenSequence
from finetuned_service.engine.sites import SiteTable, find_sites
from finetuned_service.errors import StartRefused


@final
class NativeModel:
    """A base packed for the native decoder. The stored weights stay mapped from the file, shared with jobs."""

    encodes = False

    def __init__(
        self,
        library: Library,
        weights: NativeWeights,
        stored: dict[str, Callable[[], Tensor]],
        directory: Path,
        sites: SiteTable,
        ends: frozenset[int],
    ) -> None:
        """See `load`."""
        self.library = library
        self.weights = weights
        self.sites = sites
        self.device = torch.device("cpu")
        self.end_token_ids = ends
        self._stored = stored
        self.directory = directory

    @classmethod
    def load(cls, directory: Path, library: Library) -> NativeModel:
        """The base in `directory`.

        Raises:
            NotNative: if the decoder does not compute it.
            Unimplemented: if its attention has a feature that no path of the engine computes.
        """
        module = load_base(directory)
        require_full_attention(module)
        geometry = check_geometry(module)
        stored = stored_tensors(module, directory)
        weights = NativeWeights(library, module, geometry)
        return cls(library, weights, stored, directory, find_sites(module), end_token_ids(module, directory))

    @property
    def geometry(self) -> BaseGeometry:
        """Of the base's files."""
        return BaseGeometry.of_files(self.directory)

    @property
    def context_tokens(self) -> int:
        return self.weights.geometry.context

    @property
    def vocabulary_tokens(self) -> int:
        return self.weights.geometry.vocabulary

    @property
    def size_bytes(self) -> int:
        """The stored weights, mapped and shared, and the packed ones."""
        return sum(read().nbytes for read in self._stored.values()) + self.weights.packed_bytes

    @property
    def path(self) -> str:
        """See `runner.Model`."""
        return f"native, {self.library.instructions}"

    def linear_weight(self, module: str) -> Tensor:
        """The weight `[out, in]` of a linear module of the base."""
        return self._stored[f"{module}.weight"]()

    def open(self, config: EngineConfig) -> NativeRunner:
        """See `runner.Model`."""
        return NativeRunner(self, config)

    def share(self) -> tuple[SharedTensor, ...]:
        """See `runner.Model`: the file's pages are shared by mapping them."""
        return ()

    def fingerprint(self) -> str:
        """The digest of what serves: packed weights are read back out of their packed form."""
        return fingerprint(self._stored | self._packed(), self.directory)

    def _packed(self) -> dict[str, Callable[[], Tensor]]:
        readers = self.weights.readers()
        return {name: read for name, read in readers.items() if name in self._stored}


@final
class NativeRunner:
    """The steps of one engine on a NativeModel."""

    kv_block_tokens = PANEL
    shares_prefixes = True
    idle_work_proceeds = True

    def __init__(self, model: NativeModel, config: EngineConfig) -> None:
        """See `NativeModel.open`.

        Raises:
            StartRefused: if the system does not give it its threads.
        """
        geometry = model.weights.geometry
        self._library = model.library
        self._vocabulary = geometry.vocabulary
        # A block of 32 tokens is one piece: a step that reads it in every layer finds it on a huge page or two.
        shape = (
            config.kv_capacity_tokens // PANEL,
            geometry.layers,
            2,
            geometry.kv_heads,
            PANEL * geometry.head_dim,
        )
        self._arena = huge_page_bytes(2 * math.prod(shape)).view(torch.bfloat16).view(shape)
        self._layers, self._struct = model.weights.with_arena(self._arena)
        self._model = model  # its tensors are what the structs point to
        self.memory = NativeAdapters(
            AdapterReader(model.sites, model.geometry, torch.bfloat16, model.linear_weight),
            AdapterPacker(model.library, model.weights, model.linear_weight),
            config.device_budget_bytes,
        )
        self._decoder = model.library.decoder_new(config.threads)
        if not self._decoder:
            raise StartRefused(
                f"the system did not give the engine its {config.threads} threads with their memory: set threads lower, or "
                "allow the server more processes (ulimit -u, the container's limit of pids) or memory (ulimit -v)"
            )
        self._block_bytes = self._arena[0].nbytes
        ahead_bytes = config.ready_kv_tokens // PANEL * self._block_bytes
        whole = self._arena.view(torch.uint8)
        self._pages = PagesAhead(whole, ahead_bytes, model.library.touch) if ahead_bytes else None

    @property
    def kv_bytes(self) -> int:
        return self._arena.nbytes

    def close(self) -> None:
        """End the threads; harmless to repeat."""
        if self._pages is not None:
            self._pages.close()
        if self._decoder:
            self._library.decoder_free(self._decoder)
            self._decoder = None

    def warm(self) -> bool:
        """See `runner.Runner`: it is compiled."""
        return False

    def copy_kv(self, copy: PrefixCopy) -> None:
        """See `runner.Runner`; whole blocks."""
        source, target, count = (place // PANEL for place in (copy.source, copy.target, copy.tokens))
        self._arena[target : target + count] = self._arena[source : source + count]

    def run(self, chunks: Sequence[Chunk], place_of: PlaceOf, *, all_logits: bool = False) -> StepLogits:
        """See `runner.Runner`.

        Raises:
            MemoryError: if there is none for a step of this size.
        """
        placed: list[tuple[Chunk, Placed | None]] = [(chunk, place_of(chunk.sequence)) for chunk in chunks]
        placed.sort(key=lambda entry: (False, -1) if entry[1] is None else entry[1].order)
        token_ids: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        spans: list[SpanStruct] = []
        chosen: list[TokenSequence] = []
        row_places: list[Placed | None] = []
        for chunk, place in placed:
            sequence, row = chunk.sequence, len(token_ids)
            first, end = sequence.computed_tokens, sequence.computed_tokens + chunk.rows
            kv = sequence.kv
            assert kv is not None, "a running sequence has its KV range"
            token_ids.extend(sequence.tokens[first:end])
            positions.extend(range(first, end))
            row_places.extend([place] * chunk.rows)
            spans.append(SpanStruct(kv.start, row, chunk.rows, end))
            if chunk.completes:
                logit_rows.append(len(token_ids) - 1)
                chosen.append(sequence)
        if all_logits:
            logit_rows = list(range(len(token_ids)))
        segments = [
            SegmentStruct(place.adapter.pairs, place.adapter.change_pointer, row, rows)
            for row, rows, place in neighbours(row_places)
        ]
        if self._pages is not None:
            self._pages.used(
                max(-(-(span.kv_start + span.live) // PANEL) for span in spans) * self._block_bytes
            )
        logits = torch.empty(len(logit_rows), self._vocabulary)
        highest = (c_int32 * len(logit_rows))()
        step = StepStruct(
            tokens=_int32(token_ids),
            positions=_int32(positions),
            segments=(SegmentStruct * len(segments))(*segments),
            spans=(SpanStruct * len(spans))(*spans),
            logit_rows=_int32(logit_rows),
            logits=logits.data_ptr(),
            highest=highest,
            rows=len(token_ids),
            segment_count=len(segments),
            span_count=len(spans),
            logit_count=len(logit_rows),
        )
        if self._library.decoder_step(self._decoder, byref(self._struct), byref(step)):
            raise MemoryError
        return StepLogits(
            logits, tuple(chosen), [] if all_logits else [None if i < 0 else i for i in highest]
        )

    def draw(
        self, rows: Sequence[Tensor], samplings: Sequence[Sampling], uniforms: Sequence[float]
    ) -> list[int]:
        """See `runner.Runner`.

        Raises:
            MemoryError: if there is none.
            ValueError: as of `draws.draw_tokens`.
        """
        scores = [row.float().contiguous() for row in rows]
        draws = [
            DrawStruct(
                logits=row.data_ptr(),
                top_p=sampling.top_p,
                uniform=uniform,
                divisor=max(sampling.temperature, LEAST_DIVISOR),
                top_k=min(sampling.top_k, self._vocabulary),
            )
            for row, sampling, uniform in zip(scores, samplings, uniforms, strict=True)
        ]
        tokens = (c_int32 * len(draws))()
        array = (DrawStruct * len(draws))(*draws)
        if self._library.decoder_draw(self._decoder, array, len(draws), self._vocabulary, tokens):
            raise MemoryError
        told = list(tokens)
        refuse_none_drawn(told)
        return told


def _int32(values: list[int]) -> object:
    return (c_int32 * len(values))(*values)
