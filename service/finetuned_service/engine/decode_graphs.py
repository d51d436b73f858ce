"""Steps in which every row decodes, on a GPU: each shape captured once as a CUDA graph, then replayed.

A step of a small base is some thousand kernels of microseconds each; launching them one by one takes longer than
computing them. A graph launches all at once (https://docs.nvidia.com/cuda/cuda-c-programming-guide, "CUDA Graphs"),
but always the same kernels on the same addresses. So rows, keys and ranks are rounded up to few sizes, and what
differs from step to step is data: the rows' tokens and places, and which rows of the LoRA banks they use.

Padding writes its keys and values to a place of its own and is cut off the logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import structlog
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.engine.attention_rows import DecodeGroup, PackedRows
from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.engine.lora_bank import LoraBanks, Placement
from finetuned_service.engine.scheduler import Chunk
from finetuned_service.engine.sites import SiteKernel

_log = structlog.get_logger()

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
KEYS = (128, 512, 2048, 8192, 32_768, 131_072)
RANKS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
"""Sizes that shapes are rounded up to. Few, because each pair of them that is met costs a capture (about 0.1 s)
and its memory; a step is then at most four times as large as it had to be, which on a GPU is little at these sizes."""
MAX_GATHERED_BYTES = 512 * 1024 * 1024
"""Keys and values of one layer that a step puts side by side; beyond this it is computed without a graph, where each row
takes no more than it has."""
STEPS_BEFORE_CAPTURE = 8
"""So often is a shape computed without a graph first: a capture must not be paid for a shape that comes once."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a graph was captured for; all but `rows` may be zero only where nothing of it is there."""

    rows: int
    keys: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """The rows of one step: where each one's keys begin, how many it has with its own, its token, its adapter."""

    token_ids: Sequence[int]
    kv_starts: Sequence[int]
    live_tokens: Sequence[int]
    placements: Sequence[Placement | None]

    @classmethod
    def of(cls, chunks: Sequence[Chunk], placements: Sequence[Placement | None]) -> Decoding:
        """Of chunks of one row each that choose a token."""
        sequences = [chunk.sequence for chunk in chunks]
        return cls(
            token_ids=[sequence.tokens[sequence.computed_tokens] for sequence in sequences],
            kv_starts=[sequence.kv.start if sequence.kv else 0 for sequence in sequences],
            live_tokens=[sequence.computed_tokens + 1 for sequence in sequences],
            placements=placements,
        )


def rounded_up(size: int, sizes: Sequence[int]) -> int | None:
    """The smallest of `sizes` that is at least `size`; None if there is none."""
    return next((allowed for allowed in sizes if allowed >= size), None)


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Which rows of one kind's bank a step reads, and which of those are each row's own."""

    bank_rows: tuple[int, ...]
    firsts: tuple[int, ...]
    ranks: tuple[int, ...]


def plan_ranks(placements: Sequence[Placement | None], kind: int) -> RankPlan:
    """Each adapter's rows once, one after another, in the order in which the step meets them."""
    place_of: dict[int, int] = {}
    bank_rows: list[int] = []
    firsts, ranks = [0] * len(placements), [0] * len(placements)
    for row, placement in enumerate(placements):
        taken = None if placement is None else placement.ranges.get(kind)
        if taken is None:
            continue
        if taken.start not in place_of:
            place_of[taken.start] = len(bank_rows)
            bank_rows.extend(range(taken.start, taken.end))
        firsts[row], ranks[row] = place_of[taken.start], taken.length
    return RankPlan(tuple(bank_rows), tuple(firsts), tuple(ranks))


def _of_all_sites(bank: Tensor, rows: Tensor) -> Tensor:
    """`[sites, U, width]`, the rows `[U]` of every site in a bank `[sites, capacity, width]`: one launch for all layers."""
    sites, capacity, width = bank.shape
    first = torch.arange(sites, device=bank.device)[:, None] * capacity
    # As rows of one matrix: along another dimension than the first torch copies at a tenth of the speed.
    return bank.view(-1, width).index_select(0, (first + rows).view(-1)).view(sites, -1, width)


@final
class GraphLora:
    """See `sites.SiteKernel`: LoRA of all rows by tables that live on the GPU, so that the launches never change.

    Args:
        a: `[U, in]`, the ranks that the step reads at this site.
        b: `[U, out]`.
        outside: `[B, U]` bool, where a row meets another's rank.
    """

    __slots__ = ("_a", "_b", "_outside")

    def __init__(self, a: Tensor, b: Tensor, outside: Tensor) -> None:
        self._a, self._b, self._outside = a, b, outside

    def __call__(self, base: nn.Module, inputs: Tensor) -> Tensor:
        outputs: Tensor = base(inputs)
        hidden = functional.linear(inputs[0], self._a)
        # Not a product with 0 and 1: an adapter that overflows must not reach other rows.
        hidden.masked_fill_(self._outside, 0.0)
        outputs[0].addmm_(hidden, self._b)
        return outputs


class Forward(Protocol):
    """How a base computes rows that decode."""

    def __call__(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        rows: PackedRows,
        kernels: Sequence[SiteKernel | None] | None,
    ) -> Tensor:
        """Logits `[B, vocabulary]` of `[1, B]` tokens at their positions; writes keys and values.

        Args:
            token_ids: int64.
            position_ids: int64, of the same shape.
            rows: how they attend.
            kernels: what adapters do, by site; None for the plain base alone.
        """
        ...


class _Inputs:
    """The tables of one shape on the GPU, and their twins in pinned memory. int64, one copy a step."""

    def __init__(self, shape: Shape, kinds: int, scratch_slot: int, device: torch.device) -> None:
        self.shape = shape
        rows, ranks = shape.rows, shape.ranks
        self._scratch_slot = scratch_slot
        pinned = device.type == "cuda"
        self._host = torch.zeros(3, rows, dtype=torch.int64, pin_memory=pinned)
        self.step = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._host_ranks = torch.zeros(kinds, 2 * rows + ranks, dtype=torch.int64, pin_memory=pinned)
        self.ranks = torch.zeros(kinds, 2 * rows + ranks, dtype=torch.int64, device=device)
        self._known: tuple[Placement | None, ...] | None = None

    def write(self, decoding: Decoding) -> None:
        """The step's own; what no row needs is padding."""
        count = len(decoding.token_ids)
        host = self._host
        host[0, :count] = torch.tensor(decoding.token_ids)
        host[1, :count] = torch.tensor(decoding.kv_starts)
        host[2, :count] = torch.tensor(decoding.live_tokens)
        host[0, count:], host[1, count:], host[2, count:] = 0, self._scratch_slot, 1
        self.step.copy_(host, non_blocking=True)
        placements = tuple(decoding.placements)
        if self.shape.ranks and placements != self._known:
            self._known = placements
            self._write_ranks(placements)

    def _write_ranks(self, placements: Sequence[Placement | None]) -> None:
        rows, host = self.shape.rows, self._host_ranks
        host.zero_()
        for kind in range(host.shape[0]):
            plan = plan_ranks(placements, kind)
            host[kind, : len(placements)] = torch.tensor(plan.firsts)
            host[kind, rows : rows + len(placements)] = torch.tensor(plan.ranks)
            host[kind, 2 * rows : 2 * rows + len(plan.bank_rows)] = torch.tensor(
                plan.bank_rows, dtype=torch.int64
            )
        self.ranks.copy_(host, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: _Inputs
    graph: Any
    logits: Tensor
    """`[B, vocabulary]`; written by every replay."""
    greedy: Tensor
    """`[B]`; -1 where a row is not finite."""


class DecodeGraphs:
    """All graphs of one engine; belongs to its thread.

    Args:
        banks: of LoRA weights; other ops have no graphs.
        arena: one token larger than what sequences may use; its last one is for padding.
        forward: the base's.
        device: a GPU.
    """

    def __init__(self, banks: LoraBanks, arena: KvArena, forward: Forward, device: torch.device) -> None:
        self._banks, self._arena, self._forward, self._device = banks, arena, forward, device
        self._graphs: dict[Shape, _Captured] = {}
        self._met: Counter[Shape] = Counter()
        self._pool: Any = None
        self._broken = ""

    @property
    def count(self) -> int:
        """Shapes captured so far."""
        return len(self._graphs)

    def shape_of(self, decoding: Decoding) -> Shape | None:
        """Rounded up; None if a size is beyond all graphs."""
        kinds = range(len(self._banks.table.kinds))
        most = max((len(plan_ranks(decoding.placements, kind).bank_rows) for kind in kinds), default=0)
        rows = rounded_up(len(decoding.token_ids), ROWS)
        keys = rounded_up(max(decoding.live_tokens), KEYS)
        ranks = rounded_up(most, RANKS)
        if rows is None or keys is None or ranks is None:
            return None
        gathered_bytes = rows * keys * self._arena.token_bytes
        return Shape(rows, keys, ranks) if gathered_bytes <= MAX_GATHERED_BYTES else None

    def ready(self, decoding: Decoding) -> Shape | None:
        """The shape, once it has come often enough for a graph; None where the step is computed without one."""
        if self._broken or (shape := self.shape_of(decoding)) is None:
            return None
        self._met[shape] += 1
        return shape if self._met[shape] > STEPS_BEFORE_CAPTURE else None

    @torch.inference_mode()
    def run(self, shape: Shape, decoding: Decoding) -> tuple[Tensor, list[int | None]] | None:
        """Logits `[rows, vocabulary]`, valid until the next run, and of each row as `sampling.greedy_tokens`; None where
        the shape cannot be captured, now and from then on.
        """
        captured = self._graphs.get(shape) or self._capture(shape)
        if captured is None:
            return None
        count = len(decoding.token_ids)
        captured.inputs.write(decoding)
        captured.graph.replay()
        told: list[int] = captured.greedy[:count].tolist()
        return captured.logits[:count], [None if token_id < 0 else token_id for token_id in told]

    @torch.inference_mode()
    def compute(self, shape: Shape, decoding: Decoding) -> tuple[Tensor, list[int | None]]:
        """As `run`, by the same kernels one by one, on any device."""
        inputs = self._inputs(shape)
        inputs.write(decoding)
        logits, greedy = self._compute(inputs)
        count = len(decoding.token_ids)
        return logits[:count], [None if token_id < 0 else token_id for token_id in greedy[:count].tolist()]

    def _inputs(self, shape: Shape) -> _Inputs:
        return _Inputs(shape, len(self._banks.table.kinds), self._arena.capacity_tokens - 1, self._device)

    @torch.inference_mode()
    def _capture(self, shape: Shape) -> _Captured | None:
        inputs = self._inputs(shape)
        inputs.write(Decoding((), (), (), ()))
        graph = torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(beside):
                for _ in range(2):  # libraries choose kernels and take workspaces at their first calls
                    self._compute(inputs)
            torch.cuda.current_stream(self._device).wait_stream(beside)
            # Adapters are loaded by another thread meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits, greedy = self._compute(inputs)
        except RuntimeError as error:
            self._broken = str(error).partition("\n")[0]
            _log.warning("decode_graphs_off", reason=self._broken, note="it serves, but slower")
            return None
        self._pool = self._pool or graph.pool()
        captured = self._graphs[shape] = _Captured(inputs, graph, logits, greedy)
        return captured

    def _compute(self, inputs: _Inputs) -> tuple[Tensor, Tensor]:
        shape = inputs.shape
        token_ids, starts, live = inputs.step[0], inputs.step[1][:, None], inputs.step[2][:, None]
        offsets = torch.arange(shape.keys, device=self._device)[None]
        # Padding reads the row's own last token: what another sequence computed never enters, not even as 0.
        slots = starts + torch.minimum(offsets, live - 1)
        mask = torch.zeros(shape.rows, shape.keys, dtype=self._arena.dtype, device=self._device)
        mask.masked_fill_(offsets >= live, -torch.inf)
        group = DecodeGroup(
            rows=torch.arange(shape.rows, device=self._device),
            slots=slots.reshape(-1),
            mask=mask.view(1, shape.rows, 1, shape.keys),
            whole=True,
        )
        own = (starts + live - 1).reshape(-1)
        packed = PackedRows(self._arena, own, (), (group,))
        positions = (live - 1).reshape(1, -1)
        logits = self._forward(token_ids[None], positions, packed, self._kernels(inputs))
        highest, ids = logits.max(dim=-1)
        return logits, ids.masked_fill(~torch.isfinite(highest), -1)

    def _kernels(self, inputs: _Inputs) -> list[SiteKernel | None] | None:
        shape, banks = inputs.shape, self._banks
        if not shape.ranks:
            return None
        kernels: list[SiteKernel | None] = [None] * len(banks.table.names)
        places = torch.arange(shape.ranks, device=self._device)[None]
        for k, kind in enumerate(banks.table.kinds):
            table = inputs.ranks[k]
            firsts = table[: shape.rows][:, None]
            ends = firsts + table[shape.rows : 2 * shape.rows][:, None]
            outside = (places < firsts) | (places >= ends)
            a, b = (_of_all_sites(bank[k], table[2 * shape.rows :]) for bank in (banks.a, banks.b))
            for place, site in enumerate(kind.sites):
                kernels[site] = GraphLora(a[place], b[place], outside)
        return kernels
