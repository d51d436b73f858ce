"""LoRA for all rows of a step at once: `outputs += (inputs A^T) B^T`, B scaled, each row with its adapter.

Decoding rows (one per sequence) of all adapters go through one product with a slice of the bank that
covers them, and a mask keeps each row to its own adapter's ranks: two small GEMMs a site however many
adapters there are, and each weight is read once. Prompt chunks are long, so each goes through a product
with its adapter's rows alone; on a GPU, where a launch costs more than the products that the mask throws away, they
go with the decoding rows. Rows of the plain base are in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.engine.allocator import Range
from finetuned_service.engine.lora_bank import LoraBanks, Placement

MAX_GAP_RANKS = 64
"""A gap between the rows of two adapters is read through rather than paid for with a further product
if it is at most this long: reading 64 rows costs about as much as the three calls of a product."""


MAX_STACKED_RANKS = {"cpu": 0, "cuda": 1024}
"""Up to so many ranks of all adapters of a step, prompt chunks go through the product of the decoding rows: by the
device's type. 32 prompts on 32 adapters of SmolLM2-135M are 13,000 launches otherwise, 80 ms of an H100's host."""


@dataclass(frozen=True, slots=True)
class LoraRows:
    """Which rows of the packed batch belong to which adapter.

    `decoding[i]` is the adapter of row i; `chunks` are (first row, end row, adapter). Equal ones have
    equal kernels.
    """

    decoding: tuple[Placement, ...]
    chunks: tuple[tuple[int, int, Placement], ...]


@dataclass(frozen=True, slots=True)
class _Stack:
    """Rank rows of a bank used together; `outside [rows, ranks]` is where a row meets another's rank."""

    ranks: Range
    outside: Tensor | None


@final
class LoraKernel:
    """What LoRA does at one site in one step: called with the site's rows, it adds to `outputs` in place."""

    __slots__ = ("_chunks", "_decoding_rows", "_stacks")

    def __init__(
        self,
        decoding_rows: int,
        stacks: tuple[tuple[Tensor, Tensor, Tensor | None], ...],
        chunks: tuple[tuple[int, int, Tensor, Tensor], ...],
    ) -> None:
        self._decoding_rows = decoding_rows
        self._stacks = stacks
        self._chunks = chunks

    def __call__(self, inputs: Tensor, outputs: Tensor) -> None:
        if self._stacks:
            rows_in, rows_out = inputs, outputs
            if self._decoding_rows < len(inputs):
                rows_in, rows_out = inputs[: self._decoding_rows], outputs[: self._decoding_rows]
            for a, b, outside in self._stacks:
                hidden = functional.linear(rows_in, a)
                if outside is not None:
                    # Not a product with 0 and 1: an adapter that overflows must not reach other rows.
                    hidden.masked_fill_(outside, 0.0)
                rows_out.addmm_(hidden, b)
        for start, end, a, b in self._chunks:
            outputs[start:end].addmm_(functional.linear(inputs[start:end], a), b)


def build_kernels(banks: LoraBanks, rows: LoraRows) -> list[LoraKernel | None]:
    """The kernels of a step, by site index; None where no adapter of the step acts."""
    kernels: list[LoraKernel | None] = [None] * len(banks.table.names)
    masks: dict[tuple[tuple[int, Range | None], ...], tuple[_Stack, ...]] = {}
    most = MAX_STACKED_RANKS.get(banks.device.type, 0)
    together = bool(most) and _ranks(rows) <= most
    for k, kind in enumerate(banks.table.kinds):
        stacked = _runs(rows if together else LoraRows(rows.decoding, ()), k)
        if stacked not in masks:
            masks[stacked] = _stacks(stacked, banks.a[k].device)
        stacks = masks[stacked]
        single = () if together else rows.chunks
        chunks = [(start, end, p.ranges[k]) for start, end, p in single if k in p.ranges]
        if not stacks and not chunks:
            continue
        decoding_rows = sum(count for count, _ in stacked)
        stack_rows = [_of_sites(banks, k, stack.ranks) for stack in stacks]
        chunk_rows = [_of_sites(banks, k, taken) for _, _, taken in chunks]
        for place, site in enumerate(kind.sites):
            kernels[site] = LoraKernel(
                decoding_rows,
                tuple((*rows[place], s.outside) for rows, s in zip(stack_rows, stacks, strict=True)),
                tuple(
                    (start, end, *rows[place])
                    for rows, (start, end, _) in zip(chunk_rows, chunks, strict=True)
                ),
            )
    return kernels


def _of_sites(banks: LoraBanks, kind: int, taken: Range) -> list[tuple[Tensor, Tensor]]:
    """The rows `a [r, in]` and `b [r, out]` at each site of a kind. Two views of all sites at once: one after another
    they take longer than the products of a small step.
    """
    a, b = (bank[kind][:, taken.start : taken.end].unbind(0) for bank in (banks.a, banks.b))
    return list(zip(a, b, strict=True))


def _ranks(rows: LoraRows) -> int:
    """Of all adapters of the step together, at the module kind where they are most."""
    placements = {id(p): p for p in (*rows.decoding, *(p for _, _, p in rows.chunks))}
    totals: Counter[int] = Counter()
    for placement in placements.values():
        totals.update({k: taken.length for k, taken in placement.ranges.items()})
    return max(totals.values(), default=0)


def _runs(rows: LoraRows, k: int) -> tuple[tuple[int, Range | None], ...]:
    """From the first row on: how many neighbours have which ranks of a kind."""
    runs: list[tuple[int, Range | None]] = [(1, placement.ranges.get(k)) for placement in rows.decoding]
    at = len(runs)
    for start, end, placement in rows.chunks:
        if start > at:
            runs.append((start - at, None))
        runs.append((end - start, placement.ranges.get(k)))
        at = end
    return tuple(runs)


def _stacks(runs: Sequence[tuple[int, Range | None]], device: torch.device) -> tuple[_Stack, ...]:
    """Cover the ranges of the rows with few slices, leaving out long gaps."""
    spans: list[Range] = []
    for taken in sorted({t for _, t in runs if t is not None}, key=lambda t: t.start):
        if spans and taken.start - spans[-1].end <= MAX_GAP_RANKS:
            spans[-1] = Range(spans[-1].start, taken.end - spans[-1].start)
        else:
            spans.append(taken)
    return tuple(_Stack(span, _outside(runs, span, device)) for span in spans)


def _outside(runs: Sequence[tuple[int, Range | None]], span: Range, device: torch.device) -> Tensor | None:
    if all(taken == span for _, taken in runs):
        return None
    within = [taken is not None and span.start <= taken.start < span.end for _, taken in runs]
    own = [
        taken if inside and taken is not None else Range(span.start, 0)
        for (_, taken), inside in zip(runs, within, strict=True)
    ]
    counts = torch.tensor([count for count, _ in runs])
    firsts = torch.tensor([taken.start - span.start for taken in own]).repeat_interleave(counts).to(device)
    ends = torch.tensor([taken.end - span.start for taken in own]).repeat_interleave(counts).to(device)
    places = torch.arange(span.length, device=device)[None]
    return (places < firsts[:, None]) | (places >= ends[:, None])
