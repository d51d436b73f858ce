"""Busy adapters that start no more sequences, so that one that waits gets their memory. Pure logic, no torch.

With more adapters in demand than fit, those in memory could stay busy for ever: each sequence that ends is
followed by another of the same adapter. The answer is to let one of them run out, and not to stop all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.sequence import Sequence


class Drains:
    """Owns the set of adapters that are held back."""

    def __init__(self) -> None:
        self._digests: set[str] = set()
        self.begun = 0
        """How often an adapter was held back."""

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def extend(self, running: Iterable[Sequence], may_leave: Callable[[AdapterHandle], bool]) -> None:
        """Hold back one more adapter, unless one of them still runs: the one whose sequences end soonest.

        Args:
            running: the sequences of the batch.
            may_leave: whether an adapter's memory would be free if nobody used it.
        """
        tokens_left: dict[str, int] = {}
        for sequence in running:
            if (handle := sequence.adapter) is not None and may_leave(handle):
                left = sequence.limit_tokens - len(sequence.tokens)
                tokens_left[handle.digest] = max(left, tokens_left.get(handle.digest, 0))
        if self._digests & tokens_left.keys():
            return
        if others := tokens_left.keys() - self._digests:
            self._digests.add(min(others, key=lambda digest: (tokens_left[digest], digest)))
            self.begun += 1

    def end(self) -> None:
        """Nobody waits for them any more."""
        self._digests.clear()
