"""What a step computes of each sequence. Pure logic, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from finetuned_service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` tokens of a sequence, from `sequence.computed_tokens` on, for the next forward."""

    sequence: Sequence
    rows: int

    @property
    def completes(self) -> bool:
        """Its last row is the newest token: its logits choose the next one."""
        return self.rows == self.sequence.pending_tokens


def prompt_chunks(prompts: Rows[Sequence], budget_tokens: int) -> list[Chunk]:
    """What the next step computes of prompts, together at most `budget_tokens`.

    Tenants share the budget equally, and what one does not need is the others': a short prompt does not wait for long
    ones of somebody else, and no long one for an endless row of short ones. Of one tenant first come, first served.

    Args:
        prompts: in the order of admission.
        budget_tokens: at least 1.
    """
    if any(sequence.whole for sequence in prompts):
        return _whole_chunks(prompts, budget_tokens)
    left = _shares(prompts, budget_tokens)
    chunks: list[Chunk] = []
    for sequence in prompts:
        if rows := min(sequence.pending_tokens, left[sequence.request.tenant]):
            chunks.append(Chunk(sequence, rows))
            left[sequence.request.tenant] -= rows
    return chunks


def _shares(prompts: Rows[Sequence], budget_tokens: int) -> dict[str, int]:
    """Of each tenant, in tokens: who needs less than an equal share leaves the rest to the others."""
    pending = Counter[str]()
    for sequence in prompts:
        pending[sequence.request.tenant] += sequence.pending_tokens
    shares: dict[str, int] = {}
    for tenant, tokens in sorted(pending.items(), key=lambda item: item[1]):
        shares[tenant] = min(tokens, budget_tokens // (len(pending) - len(shares)))
        budget_tokens -= shares[tenant]
    return shares


def _whole_chunks(prompts: Rows[Sequence], budget_tokens: int) -> list[Chunk]:
    """Of sequences that are computed in one step: the first of each tenant, then the second of each."""
    earlier = Counter[str]()
    turns: list[tuple[int, int]] = []
    for place, sequence in enumerate(prompts):
        turns.append((earlier[sequence.request.tenant], place))
        earlier[sequence.request.tenant] += 1
    chunks: list[Chunk] = []
    for _, place in sorted(turns):
        sequence = prompts[place]
        # One may exceed the budget alone: contexts of encoders are short.
        if budget_tokens and not (chunks and sequence.pending_tokens > budget_tokens):
            chunks.append(Chunk(sequence, sequence.pending_tokens))
            budget_tokens = max(0, budget_tokens - sequence.pending_tokens)
    return chunks
