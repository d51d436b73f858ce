"""Steps in which every row decodes, on a GPU: each shape captured once as a graph, then replayed.

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
from typing import Protocol

import structlog
import torch
from torch import Tensor

from finetuned_service.engine.attention_rows import DecodeGroup, PackedRows
from finetuned_service.engine.decode_shapes import (
    KEYS,
    MAX_GATHERED_BYTES,
    MAX_GATHERED_RANK_BYTES,
    RANKS,
    ROWS,
    Decoding,
    Shape,
    covering,
    plan_ranks,
    rounded_up,
)
from finetuned_service.engine.graph_lora import RankTable, graph_kernels, kinds_with_equal_inputs
from finetuned_service.engine.graph_recorder import Recorder, Recording
from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.engine.lora_bank import LoraBanks, Placement
from finetuned_service.engine.sites import SiteKernel

_log = structlog.get_logger()

MAX_GRAPHS = 96
"""Each takes some MB of the GPU, for as long as the engine lives."""
FIRST_SHAPES = 3
"""Captured before the engine is ready; the others when it has nothing to compute."""
STEPS_WITHOUT_REST = 512
"""So many steps of one shape are computed without a graph by an engine that always has something to compute; then the
capture is put between two of them: it costs what some ten of those steps cost more than a graph."""


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
    recording: Recording


class DecodeGraphs:
    """All graphs of one engine; belongs to its thread. Steps are captured when nothing waits for them, never for the
    first who needs them: until then those are computed in a larger shape, or without a graph.

    Args:
        banks: of LoRA weights; other ops have no graphs.
        arena: one token larger than what sequences may use; its last one is for padding.
        forward: the base's.
        device: of all of them.
        recorder: captures.
        usual: what is captured unasked, in this order.
    """

    def __init__(
        self,
        banks: LoraBanks,
        arena: KvArena,
        forward: Forward,
        device: torch.device,
        recorder: Recorder | None = None,
        usual: Sequence[Shape] = (),
    ) -> None:
        self._banks, self._arena, self._forward, self._device = banks, arena, forward, device
        self._recorder = recorder
        self._usual = [shape for shape in usual if self._has_room(shape)]
        self._captured: dict[Shape, _Captured] = {}
        self._wanted: Counter[Shape] = Counter()
        """In how many steps a shape came that has no graph of its own."""
        self._without: Counter[Shape] = Counter()
        """How many of those were computed without any."""
        self._groups: tuple[tuple[int, ...], ...] | None = None
        for shape in self._usual[:FIRST_SHAPES]:
            self._capture(shape)

    @property
    def count(self) -> int:
        """Shapes captured so far."""
        return len(self._captured)

    def shape_of(self, decoding: Decoding) -> Shape | None:
        """Rounded up; None if a size is beyond all graphs."""
        kinds = range(len(self._banks.table.kinds))
        most = max((len(plan_ranks(decoding.placements, kind).bank_rows) for kind in kinds), default=0)
        rows = rounded_up(len(decoding.token_ids), ROWS)
        keys = rounded_up(max(decoding.live_tokens), KEYS)
        ranks = rounded_up(most, RANKS)
        if rows is None or keys is None or ranks is None:
            return None
        shape = Shape(rows, keys, ranks)
        return shape if self._has_room(shape) else None

    def _has_room(self, shape: Shape) -> bool:
        rank_bytes = self._banks.rows_bytes(dict.fromkeys(range(len(self._banks.table.kinds)), shape.ranks))
        kv_bytes = shape.rows * shape.keys * self._arena.token_bytes
        return kv_bytes <= MAX_GATHERED_BYTES and rank_bytes <= MAX_GATHERED_RANK_BYTES

    @torch.inference_mode()
    def run(self, decoding: Decoding) -> tuple[Tensor, list[int | None]] | None:
        """Logits `[rows, vocabulary]`, valid until the next run, and of each row as `sampling.greedy_tokens`; None where
        there is no graph for it yet.
        """
        captured = self._graph_for(decoding)
        if captured is None:
            return None
        captured.inputs.write(decoding)
        captured.recording.replay()
        return self._told(captured.recording.outputs, decoding)

    def warm(self) -> bool:
        """Capture one more shape, the one first that came most often; False if there is none to capture. For a moment in
        which nobody waits: it takes about 0.1 s.
        """
        wanted = [shape for shape, _ in self._wanted.most_common()]
        shape = next((shape for shape in (*wanted, *self._usual) if shape not in self._captured), None)
        return shape is not None and self._capture(shape) is not None

    @torch.inference_mode()
    def compute(self, shape: Shape, decoding: Decoding) -> tuple[Tensor, list[int | None]]:
        """As `run` in that shape, by the same kernels one by one."""
        inputs = self._inputs(shape)
        inputs.write(decoding)
        return self._told(self._compute(inputs, self._kernels(inputs)), decoding)

    def _graph_for(self, decoding: Decoding) -> _Captured | None:
        wanted = self.shape_of(decoding)
        if wanted is None:
            return None
        if (own := self._captured.get(wanted)) is not None:
            return own
        self._wanted[wanted] += 1
        if (larger := covering(wanted, self._captured)) is not None:
            return self._captured[larger]
        self._without[wanted] += 1
        return self._capture(wanted) if self._without[wanted] > STEPS_WITHOUT_REST else None

    @staticmethod
    def _told(outputs: tuple[Tensor, Tensor], decoding: Decoding) -> tuple[Tensor, list[int | None]]:
        logits, greedy = outputs
        count = len(decoding.token_ids)
        highest: list[int] = greedy[:count].tolist()
        return logits[:count], [None if token_id < 0 else token_id for token_id in highest]

    def _inputs(self, shape: Shape) -> _Inputs:
        return _Inputs(shape, len(self._banks.table.kinds), self._arena.capacity_tokens - 1, self._device)

    def _padding(self, shape: Shape) -> _Inputs:
        """Inputs without a row of anybody."""
        inputs = self._inputs(shape)
        inputs.write(Decoding((), (), (), ()))
        return inputs

    @torch.inference_mode()
    def _try(self, kernels: Sequence[SiteKernel | None]) -> None:
        self._compute(self._padding(Shape(ROWS[0], KEYS[0], 0)), kernels)

    @torch.inference_mode()
    def _capture(self, shape: Shape) -> _Captured | None:
        """None where there are no more captures, now and from then on."""
        if self._recorder is None or len(self._captured) >= MAX_GRAPHS:
            return None
        inputs = self._padding(shape)
        try:
            recording = self._recorder.record(lambda: self._compute(inputs, self._kernels(inputs)))
        except RuntimeError as error:
            self._recorder = None
            reason = str(error).partition("\n")[0]
            _log.warning(
                "no_more_decode_graphs", reason=reason, graphs=self.count, note="other steps are slower"
            )
            return None
        self._wanted.pop(shape, None)
        captured = self._captured[shape] = _Captured(inputs, recording)
        return captured

    def _compute(self, inputs: _Inputs, kernels: Sequence[SiteKernel | None] | None) -> tuple[Tensor, Tensor]:
        shape = inputs.shape
        token_ids, starts, live = inputs.step[0], inputs.step[1][:, None], inputs.step[2][:, None]
        offsets = torch.arange(shape.keys, device=self._device)[None]
        # Padding reads the row's own last token: what another sequence computed never enters, not even as 0.
        slots = starts + torch.minimum(offsets, live - 1)
        mask = torch.zeros(shape.rows, shape.keys, dtype=self._arena.dtype, device=self._device)
        mask.masked_fill_(offsets >= live, -torch.inf)
        group = DecodeGroup(
            rows=torch.arange(shape.rows, device=self._device),
            kv_places=self._arena.places(slots.reshape(-1)),
            mask=mask.view(1, shape.rows, 1, shape.keys),
            whole=True,
        )
        own = (starts + live - 1).reshape(-1)
        packed = PackedRows(self._arena, own, (), (group,))
        positions = (live - 1).reshape(1, -1)
        logits = self._forward(token_ids[None], positions, packed, kernels)
        highest, ids = logits.max(dim=-1)
        return logits, ids.masked_fill(~torch.isfinite(highest), -1)

    def _kernels(self, inputs: _Inputs) -> list[SiteKernel | None] | None:
        shape, banks = inputs.shape, self._banks
        if not shape.ranks:
            return None
        places = torch.arange(shape.ranks, device=self._device)[None]
        tables: list[RankTable] = []
        for table in inputs.ranks:
            firsts = table[: shape.rows][:, None]
            ends = firsts + table[shape.rows : 2 * shape.rows][:, None]
            outside = (places < firsts) | (places >= ends)
            tables.append(RankTable(table[2 * shape.rows :], outside))
        if self._groups is None:  # first in the warm-up of a capture, whose failure is no one's
            self._groups = kinds_with_equal_inputs(banks.table, self._try)
        return graph_kernels(banks, tables, self._groups)
