"""The few sizes to which steps are rounded up in which every row decodes, and what of a step is data in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.lora_bank import Placement

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
KEYS = (128, 512, 2048, 8192, 32_768, 131_072)
RANKS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
"""Sizes that shapes are rounded up to. Few, because each pair of them that is met costs a capture (about 0.1 s)
and its memory; a step is then at most four times as large as it had to be, which on a GPU is little at these sizes."""
MAX_GATHERED_BYTES = 512 * 1024 * 1024
"""Keys and values of one layer that a step puts side by side; beyond this it is computed without a graph, where each row
takes no more than it has."""
MAX_GATHERED_RANK_BYTES = 1024 * 1024 * 1024
"""LoRA weights of all layers that a step puts side by side; as above. A of modules with the same inputs is there twice."""
USUAL_RANK = 16
"""Of adapters, where nobody knows yet who will come."""
USUAL_KEYS = (512, 128, 2048)
"""In the order in which they are made ready."""
MAX_COVER = 32
"""As many times as large, in rows times keys, may a step be computed until there is a graph of its own shape: that still
takes less than launching its kernels one by one."""
MAX_COVER_RANKS = 512
"""So many ranks may be read of which the step has no use; or four times those that it has a use for."""


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


def usual_shapes(max_rows: int, max_keys: int, capacity_ranks: int) -> list[Shape]:
    """What is worth a graph before anything has come: all rows on the plain base, or each on an adapter of its own; the
    first three are for one stream, some, and as many as run.

    Args:
        max_rows: that run at once.
        max_keys: of one row.
        capacity_ranks: of the banks of LoRA weights.
    """
    most_rows = rounded_up(max_rows, ROWS) or ROWS[-1]
    most_keys = rounded_up(max_keys, KEYS) or KEYS[-1]
    first = ((1, False), (min(8, most_rows), True), (most_rows, True))
    others = ((rows, adapted) for rows in ROWS if rows <= most_rows for adapted in (False, True))
    kinds = (*first, *others)
    shapes = [
        Shape(
            rows,
            min(keys, most_keys),
            (rounded_up(min(rows * USUAL_RANK, capacity_ranks), RANKS) or 0) if adapted else 0,
        )
        for keys in USUAL_KEYS
        for rows, adapted in kinds
    ]
    return list(dict.fromkeys(shapes))


def covering(wanted: Shape, shapes: Collection[Shape]) -> Shape | None:
    """The smallest of `shapes` that a step of `wanted` can be computed in without being much larger; None if none can."""
    most_ranks = max(4 * wanted.ranks, MAX_COVER_RANKS)
    fitting = [
        shape
        for shape in shapes
        if wanted.rows <= shape.rows
        and wanted.keys <= shape.keys
        and wanted.ranks <= shape.ranks <= most_ranks
        and shape.rows * shape.keys <= MAX_COVER * wanted.rows * wanted.keys
    ]
    return min(fitting, key=lambda shape: (shape.rows * shape.keys, shape.ranks), default=None)
