"""From the scheduler's chunks to the tensors of one forward.

The order of rows: decoding sequences with an adapter, sorted by adapter, then decoding ones of the
plain base, then prompt chunks. So the rows of all adapters that decode are one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuned_service.engine.attention_rows import PackedRows, RowSpan, plan_rows
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.engine.lora_bank import Placement
from finetuned_service.engine.lora_kernel import LoraRows
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.engine.sequence import Sequence as TokenSequence
from finetuned_service.engine.site_kernel import AdaptedRows, RowRun

PlaceOf = Callable[[TokenSequence], AdapterPlace | None]


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """One forward: T packed rows, S of which have their logits computed."""

    input_ids: Tensor
    """`[1, T]` int64."""
    position_ids: Tensor
    """`[1, T]` int64."""
    logit_rows: Tensor
    """`[S]` int64: rows that choose a token."""
    attention: PackedRows
    adapted: AdaptedRows
    chosen: tuple[TokenSequence, ...]
    """The S sequences of `logit_rows`."""


def order_chunks(chunks: Sequence[Chunk], place_of: PlaceOf) -> list[tuple[Chunk, AdapterPlace | None]]:
    """The chunks in the order of the packed rows, each with its adapter's place."""
    placed = [(chunk, place_of(chunk.sequence)) for chunk in chunks]
    decoding = [entry for entry in placed if entry[0].rows == 1]
    prefill = [entry for entry in placed if entry[0].rows > 1]
    decoding.sort(key=lambda entry: (entry[1] is None, entry[1].position if entry[1] else ()))
    return decoding + prefill


def build_batch(
    chunks: Sequence[Chunk],
    place_of: PlaceOf,
    arena: KvArena,
    dtype: torch.dtype,
    device: torch.device,
    *,
    all_logits: bool = False,
) -> StepBatch:
    """The tensors of one step; every sequence holds its KV range and its adapter.

    `all_logits` asks for those of all rows and not only of those that choose a token.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    chosen: list[TokenSequence] = []
    spans: list[RowSpan] = []
    decoding: list[Placement] = []
    long_chunks: list[tuple[int, int, Placement]] = []
    runs: list[RowRun] = []
    head_runs: list[RowRun] = []
    for chunk, place in order_chunks(chunks, place_of):
        sequence, start = chunk.sequence, len(token_ids)
        first, end = sequence.computed_tokens, sequence.computed_tokens + chunk.rows
        kv = sequence.kv
        assert kv is not None, "a running sequence has its KV range"
        token_ids.extend(sequence.tokens[first:end])
        positions.extend(range(first, end))
        slots.extend(range(kv.start + first, kv.start + end))
        spans.append(RowSpan(start, chunk.rows, kv.start, end))
        if chunk.completes:
            logit_rows.append(len(token_ids) - 1)
            chosen.append(sequence)
        if place is None:
            continue
        if place.ops and chunk.completes:
            head_runs.append(RowRun(len(logit_rows) - 1, len(logit_rows), place))
        if chunk.rows == 1:
            decoding.append(place.lora)
        else:
            long_chunks.append((start, len(token_ids), place.lora))
        if place.ops and runs and runs[-1].place is place and runs[-1].end == start:
            runs[-1] = RowRun(runs[-1].start, len(token_ids), place)
        elif place.ops:
            runs.append(RowRun(start, len(token_ids), place))
    return StepBatch(
        input_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        logit_rows=torch.tensor(
            range(len(token_ids)) if all_logits else logit_rows, dtype=torch.int64, device=device
        ),
        attention=plan_rows(spans, arena, torch.tensor(slots, device=device), dtype),
        adapted=AdaptedRows(
            LoraRows(tuple(decoding), tuple(long_chunks)),
            tuple(runs),
            tuple(runs if all_logits else head_runs),
        ),
        chosen=tuple(chosen),
    )
