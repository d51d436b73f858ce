"""LoRA for all rows of a step at once: `outputs += (inputs A^T) B^T`, B scaled, each row with its adapter.

Decoding rows (one per sequence) of all adapters go through one product with a slice of the bank that
covers them, and a mask keeps each row to its own adapter's ranks: two small GEMMs a site however many
adapters there are, and each weight is read once. Prompt chunks are long, so each goes through a product
with its adapter's rows alone. Rows of the plain base are in neither.
"""

from __future__ import annotations

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
            rows_in = inputs[: self._decoding_rows]
            rows_out = outputs[: self._decoding_rows]
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
    masks: dict[tuple[Range | None, ...], tuple[_Stack, ...]] = {}
    for k, kind in enumerate(banks.table.kinds):
        decoding = tuple(placement.ranges.get(k) for placement in rows.decoding)
        if decoding not in masks:
            masks[decoding] = _stacks(decoding, banks.a[k].device)
        stacks = masks[decoding]
        chunks = [(start, end, p.ranges[k]) for start, end, p in rows.chunks if k in p.ranges]
        if not stacks and not chunks:
            continue
        for place, site in enumerate(kind.sites):
            a, b = banks.a[k][place], banks.b[k][place]
            kernels[site] = LoraKernel(
                len(decoding),
                tuple((_rows(a, s.ranks), _rows(b, s.ranks), s.outside) for s in stacks),
                tuple((start, end, _rows(a, taken), _rows(b, taken)) for start, end, taken in chunks),
            )
    return kernels


def _rows(bank: Tensor, taken: Range) -> Tensor:
    return bank[taken.start : taken.end]


def _stacks(decoding: Sequence[Range | None], device: torch.device) -> tuple[_Stack, ...]:
    """Cover the ranges of the decoding rows with few slices, leaving out long gaps."""
    spans: list[Range] = []
    for taken in sorted({t for t in decoding if t is not None}, key=lambda t: t.start):
        if spans and taken.start - spans[-1].end <= MAX_GAP_RANKS:
            spans[-1] = Range(spans[-1].start, taken.end - spans[-1].start)
        else:
            spans.append(taken)
    return tuple(_Stack(span, _outside(decoding, span, device)) for span in spans)


def _outside(decoding: Sequence[Range | None], span: Range, device: torch.device) -> Tensor | None:
    if all(taken == span for taken in decoding):
        return None
    outside = torch.ones(len(decoding), span.length, dtype=torch.bool)
    for row, taken in enumerate(decoding):
        if taken is not None and span.start <= taken.start < span.end:
            outside[row, taken.start - span.start : taken.end - span.start] = False
    return outside.to(device)
