"""How the rows of one step attend: which keys each sees, and which rows are computed together.

A row that decodes has one query and sees all live tokens of its sequence. One call per such row costs
more than its arithmetic, so rows with up to `GATHERED_TOKENS` live tokens have their keys and values
gathered side by side, padded to a multiple of `PADDING_TOKENS`. What such a row computes depends on its
own length alone, never on its batch-mates: the padding is the row's, and so is the choice of path.

Prompts are a call each. On a GPU, where bits may depend on batch-mates, those of about the same length are one call
(`GROUPED_PROMPT_TOKENS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuned_service.engine.kv_cache import KvArena

GATHERED_TOKENS = 512
"""From here on a copy of keys and values costs more than a call."""
PADDING_TOKENS = 32
GROUPED_PROMPT_TOKENS = {"cpu": 0, "cuda": 1024}
"""Up to so many tokens prompts are computed side by side, by the device's type: launching a few kernels for each of 32
prompts in each layer takes a GPU's host longer than the padding takes the GPU. None where a call costs less than that."""
MAX_GROUPED_ROWS = 16_384
"""So many rows, padding included, are at most in one such call."""


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Consecutive rows `[start, start + rows)` of one sequence: the last of its `live_tokens` tokens, which
    lie in the arena from `kv_start` on.
    """

    start: int
    rows: int
    kv_start: int
    live_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.rows

    @property
    def kv_end(self) -> int:
        return self.kv_start + self.live_tokens


@dataclass(frozen=True, slots=True, eq=False)
class MaskedSpan:
    """A span and what its rows must not see of each other.

    `mask` `[rows, live_tokens]` is additive. None where none is needed: a single row, or a prompt from
    its beginning (`causal`).
    """

    span: RowSpan
    causal: bool
    mask: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class DecodeGroup:
    """S single rows whose L keys each are gathered from the arena."""

    rows: Tensor
    """`[S]` int64."""
    kv_places: Tensor
    """`[kv_heads * S * L]` int64, see `KvArena.places`: each row's own throughout."""
    mask: Tensor
    """`[1, S, 1, L]` additive: where a row has no token."""
    whole: bool = False
    """`rows` are all rows of the step, in their order."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """S prompts from their beginnings, side by side with L rows each; both are powers of two, since libraries may plan
    their kernels anew for each shape that they meet. Padding comes after a prompt's own rows and is one of them once more, so that
    causality hides it; a prompt that is there to fill up is the first one once more.
    """

    count: int
    padded_rows: Tensor
    """`[S * L]` int64: which row of the step stands there."""
    kv_places: Tensor
    """`[kv_heads * S * L]` int64: their keys and values, see `KvArena.places`."""
    rows: Tensor
    """`[R]` int64: the rows of the step that they are, and"""
    places: Tensor
    """`[R]` int64: where each stands among the padded ones."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """All T rows of a step."""

    arena: KvArena
    slots: Tensor
    """`[T]` int64: arena index of each row's own key and value."""
    spans: tuple[MaskedSpan, ...]
    groups: tuple[DecodeGroup, ...]
    prompts: tuple[PromptGroup, ...] = ()


def plan_rows(spans: Iterable[RowSpan], arena: KvArena, slots: Tensor, dtype: torch.dtype) -> PackedRows:
    """The plan of one step, used by all its layers."""
    alone: list[MaskedSpan] = []
    together: dict[int, list[RowSpan]] = {}
    device = slots.device
    spans = list(spans)
    grouped = _alike(spans, GROUPED_PROMPT_TOKENS.get(device.type, 0))
    done = {span.start for members in grouped for span in members}
    for span in spans:
        if span.start in done:
            continue
        if span.rows == 1 and span.live_tokens <= GATHERED_TOKENS:
            padded = -(-span.live_tokens // PADDING_TOKENS) * PADDING_TOKENS
            together.setdefault(padded, []).append(span)
        else:
            alone.append(_masked(span, dtype, device))
    groups = tuple(_group(members, length, arena, dtype, device) for length, members in together.items())
    prompts = tuple(_prompts(members, arena, device) for members in grouped)
    return PackedRows(arena, slots, tuple(alone), groups, prompts)


def _alike(spans: Iterable[RowSpan], most_tokens: int) -> list[list[RowSpan]]:
    """Prompts from their beginnings, those together whose lengths have the same next power of two; none that is alone."""
    alike: dict[int, list[RowSpan]] = {}
    for span in spans:
        if 1 < span.rows == span.live_tokens <= most_tokens:
            alike.setdefault(_power(span.rows), []).append(span)
    groups: list[list[RowSpan]] = []
    for length, members in alike.items():
        most = MAX_GROUPED_ROWS // length
        groups += [members[start : start + most] for start in range(0, len(members), most)]
    return [members for members in groups if len(members) > 1]


def _power(least: int) -> int:
    """The smallest power of two that is at least as large."""
    return 1 << (least - 1).bit_length()


def _prompts(members: Sequence[RowSpan], arena: KvArena, device: torch.device) -> PromptGroup:
    count = _power(len(members))
    filled = [*members, *[members[0]] * (count - len(members))]
    lengths = torch.tensor([span.rows for span in filled])[:, None]
    starts = torch.tensor([span.start for span in filled])
    kv_starts = torch.tensor([span.kv_start for span in filled])
    offsets = torch.arange(_power(int(lengths.max())))[None]
    own = torch.minimum(offsets, lengths - 1)
    real = offsets < lengths
    real[len(members) :] = False
    real = real.reshape(-1)
    padded_rows = (starts[:, None] + own).reshape(-1)
    return PromptGroup(
        count=count,
        padded_rows=padded_rows.to(device),
        kv_places=arena.places((kv_starts[:, None] + own).reshape(-1).to(device)),
        rows=padded_rows[real].to(device),
        places=real.nonzero()[:, 0].to(device),
    )


def _masked(span: RowSpan, dtype: torch.dtype, device: torch.device) -> MaskedSpan:
    earlier = span.live_tokens - span.rows
    mask = None
    if span.rows > 1 and earlier:
        shape = (span.rows, span.live_tokens)
        hidden = torch.ones(shape, dtype=torch.bool, device=device).triu_(earlier + 1)
        mask = torch.zeros(shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
    return MaskedSpan(span, causal=span.rows > 1 and not earlier, mask=mask)


def _group(
    members: list[RowSpan], length: int, arena: KvArena, dtype: torch.dtype, device: torch.device
) -> DecodeGroup:
    live = torch.tensor([span.live_tokens for span in members], device=device)[:, None]
    starts = torch.tensor([span.kv_start for span in members], device=device)[:, None]
    offsets = torch.arange(length, device=device)[None]
    # Padding reads the row's own last token: what another sequence computed never enters, not even as 0.
    slots = starts + torch.minimum(offsets, live - 1)
    mask = torch.zeros(len(members), length, dtype=dtype, device=device)
    mask.masked_fill_(offsets >= live, -torch.inf)
    return DecodeGroup(
        rows=torch.tensor([span.start for span in members], device=device),
        kv_places=arena.places(slots.reshape(-1)),
        mask=mask.view(1, len(members), 1, length),
    )
