"""The serving layout of LoRA weights: one stacked bank per kind of site.

A bank holds, for each of its sites, `a [capacity_ranks, in]` and `b [capacity_ranks, out]`. An adapter
of rank r owns r consecutive rows at each kind it changes, the same rows at all sites of that kind; so
adapters of different ranks lie side by side without padding, and one slice of a bank is the stacked
weight of several adapters, used where it lies: activating or mixing adapters copies nothing.
(The stacking is that of Punica and S-LoRA, https://arxiv.org/abs/2311.03285, by ranges, not pages.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuned_service.engine.allocator import Range, RangeAllocator
from finetuned_service.engine.lazy_pages import lazy_zeros
from finetuned_service.engine.sites import SiteTable


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """An adapter read, checked and converted: what only has to be copied into the banks.

    `pairs` maps a site's name to `a [r, in]` and `b [r, out]` (transposed, scaling folded in), in the
    base's dtype and all finite. `ranks` maps the index of a kind to the largest r at its sites.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    ranks: Mapping[int, int]

    @property
    def modules(self) -> int:
        return len(self.pairs)

    @property
    def size_bytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where an adapter lies: its rows in the bank of each kind it changes."""

    ranges: Mapping[int, Range]
    size_bytes: int

    @property
    def position(self) -> int:
        """Where its first rows lie; sorting by it brings neighbours in the banks together."""
        return min((taken.start for taken in self.ranges.values()), default=0)


class LoraBanks:
    """All banks of one model. Reserving and freeing is the engine thread's; `fill` may run beside a step."""

    def __init__(self, table: SiteTable, budget_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.table = table
        self.device = device
        self._locate = table.locate()
        self._rank_bytes = [
            (kind.in_features + kind.out_features) * len(kind.sites) * dtype.itemsize for kind in table.kinds
        ]
        self.capacity_ranks = budget_bytes // max(1, sum(self._rank_bytes))
        # Zeroed: a slice that spans a free row must not find a NaN there, 0 * NaN would reach every row.
        self.a = [
            lazy_zeros((len(kind.sites), self.capacity_ranks, kind.in_features), dtype, device)
            for kind in table.kinds
        ]
        self.b = [
            lazy_zeros((len(kind.sites), self.capacity_ranks, kind.out_features), dtype, device)
            for kind in table.kinds
        ]
        self._rows = [RangeAllocator(self.capacity_ranks) for _ in table.kinds]

    def rows_bytes(self, ranks: Mapping[int, int]) -> int:
        """What the rows of an adapter of `ranks` take."""
        return sum(self._rank_bytes[kind] * rank for kind, rank in ranks.items())

    def plan(self, ranks: Mapping[int, int], victims: Sequence[Placement]) -> Sequence[Placement] | None:
        """The first of `victims` that must go so that an adapter of `ranks` finds room; touches nothing.

        Returns:
            None if it finds no room even without all of them.
        """
        rows = [allocator.copy() for allocator in self._rows]
        for gone in range(len(victims) + 1):
            if all(rows[kind].can_allocate(rank) for kind, rank in ranks.items()):
                return victims[:gone]
            if gone < len(victims):
                for kind, taken in victims[gone].ranges.items():
                    rows[kind].free(taken)
        return None

    def place(self, ranks: Mapping[int, int]) -> Placement:
        """Reserve rows that `plan` found to be free."""
        ranges: dict[int, Range] = {}
        for kind, rank in ranks.items():
            taken = self._rows[kind].allocate(rank)
            assert taken is not None, "place without plan"
            ranges[kind] = taken
        return Placement(ranges, self.rows_bytes(ranks))

    def vacate(self, placement: Placement) -> None:
        """Free the rows; their values stay until overwritten."""
        for kind, taken in placement.ranges.items():
            self._rows[kind].free(taken)

    @torch.inference_mode()
    def fill(self, placement: Placement, weights: LoraWeights) -> None:
        """Copy the weights into their rows; rows of sites that the adapter leaves alone become zero."""
        for kind, taken in placement.ranges.items():
            for place, site in enumerate(self.table.kinds[kind].sites):
                a = self.a[kind][place, taken.start : taken.end]
                b = self.b[kind][place, taken.start : taken.end]
                pair = weights.pairs.get(self.table.names[site])
                rank = 0 if pair is None else pair[0].shape[0]
                if pair is not None:
                    a[:rank].copy_(pair[0])
                    b[:rank].copy_(pair[1])
                a[rank:].zero_()
                b[rank:].zero_()
