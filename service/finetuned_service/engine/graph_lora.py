"""LoRA in a graph's step: each site adds what its rows' adapters make, by tables that live on the GPU.

Sites that read the same inputs (query, key and value; gate and up) share one product with A and one mask: in a small
base's step a launch costs more than what it computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.sites import SiteKernel, SiteTable


@dataclass(frozen=True, slots=True)
class RankTable:
    """Which ranks of one kind of sites a step reads."""

    bank_rows: Tensor
    """`[U]` int64: where they lie in the kind's bank."""
    outside: Tensor
    """`[B, U]` bool: which are not the row's own."""


@final
class Hidden:
    """What A makes of inputs that one site reads, or several, one after another.

    Args:
        a: `[n U, in]`, the ranks that the step reads at each of n sites.
        outside: `[B, n U]` bool, where a row meets another's rank.
        sites: n.
    """

    __slots__ = ("_a", "_computed", "_inputs", "_outside", "_sites")

    def __init__(self, a: Tensor, outside: Tensor, sites: int) -> None:
        self._a, self._outside, self._sites = a, outside, sites
        self._inputs: Tensor | None = None
        self._computed: Tensor | None = None

    def read(self, inputs: Tensor, part: int) -> Tensor:
        """`[B, U]` of one of the sites, of `inputs` `[1, B, in]`; computed anew for others than the last reader's."""
        computed = self._computed
        if computed is None or inputs is not self._inputs:
            computed = functional.linear(inputs[0], self._a)
            # Not a product with 0 and 1: an adapter that overflows must not reach other rows.
            computed.masked_fill_(self._outside, 0.0)
        # Nothing stays beyond its last reader: a graph would keep it for as long as it lives.
        last = part == self._sites - 1
        self._inputs, self._computed = (None, None) if last else (inputs, computed)
        ranks = computed.shape[1] // self._sites
        return computed[:, part * ranks : (part + 1) * ranks]


@final
class GraphLora:
    """See `sites.SiteKernel`.

    Args:
        hidden: of the inputs.
        part: which of those who read it this site is.
        b: `[U, out]`.
    """

    __slots__ = ("_b", "_hidden", "_part")

    def __init__(self, hidden: Hidden, part: int, b: Tensor) -> None:
        self._hidden, self._part, self._b = hidden, part, b

    def __call__(self, base: nn.Module, inputs: Tensor) -> Tensor:
        outputs: Tensor = base(inputs)
        outputs[0].addmm_(self._hidden.read(inputs, self._part), self._b)
        return outputs


@final
class _Watching:
    """A site that does what the base does, and tells what it has read."""

    __slots__ = ("_seen", "_site")

    def __init__(self, site: int, seen: list[tuple[int, Tensor]]) -> None:
        self._site, self._seen = site, seen

    def __call__(self, base: nn.Module, inputs: Tensor) -> Tensor:
        self._seen.append((self._site, inputs))
        outputs: Tensor = base(inputs)
        return outputs


def kinds_with_equal_inputs(
    table: SiteTable, compute: Callable[[Sequence[SiteKernel | None]], object]
) -> tuple[tuple[int, ...], ...]:
    """The kinds of sites, those together whose sites read the very same tensor in every layer.

    Args:
        table: of the base.
        compute: some step of it with these kernels.
    """
    seen: list[tuple[int, Tensor]] = []
    compute([_Watching(site, seen) for site in range(len(table.names))])
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for site, inputs in seen:  # which keeps all of them, so that no two have the same id
        readers[id(inputs)].append(site)
    kind_of = {site: k for k, kind in enumerate(table.kinds) for site in kind.sites}
    layers: defaultdict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for sites in readers.values():
        layers[tuple(kind_of[site] for site in sites)].append(sites)
    together = [
        kinds
        for kinds, sites in layers.items()
        if [table.kinds[k].sites for k in kinds] == list(zip(*sorted(sites), strict=True))
    ]
    alone = set(range(len(table.kinds))).difference(*together)
    return (*together, *((k,) for k in sorted(alone)))


def graph_kernels(
    banks: LoraBanks, tables: Sequence[RankTable], groups: Sequence[Sequence[int]]
) -> list[SiteKernel | None]:
    """The kernels of a step, by site index.

    Args:
        banks: of all adapters.
        tables: by kind.
        groups: of kinds whose sites read the same inputs, in the order in which they do.
    """
    kernels: list[SiteKernel | None] = [None] * len(banks.table.names)
    for kinds in groups:
        a = _beside([_of_all_sites(banks.a[k], tables[k].bank_rows) for k in kinds])
        outside = _beside([tables[k].outside for k in kinds])
        hidden = [Hidden(of_layer, outside, len(kinds)) for of_layer in a.unbind(0)]
        for part, k in enumerate(kinds):
            b = _of_all_sites(banks.b[k], tables[k].bank_rows).unbind(0)
            for place, site in enumerate(banks.table.kinds[k].sites):
                kernels[site] = GraphLora(hidden[place], part, b[place])
    return kernels


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    """Along dimension 1."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def _of_all_sites(bank: Tensor, rows: Tensor) -> Tensor:
    """`[sites, U, width]`, the rows `[U]` of every site in a bank `[sites, capacity, width]`: one launch for all layers."""
    sites, capacity, width = bank.shape
    first = torch.arange(sites, device=bank.device)[:, None] * capacity
    # As rows of one matrix: along another dimension than the first torch copies at a tenth of the speed.
    return bank.view(-1, width).index_select(0, (first + rows).view(-1)).view(sites, -1, width)
