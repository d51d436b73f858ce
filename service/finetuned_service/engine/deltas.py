"""What is told of a reply at once: tokens wait for others where the caller wants them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetuned_service.engine.messages import Tokens
from finetuned_service.engine.sequence import Sequence as TokenSequence


def joined(events: Sequence[Tokens]) -> Tokens:
    """Consecutive events of one request, at least one, as one event."""
    if len(events) == 1:
        return events[0]
    return replace(
        events[-1],
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        logprobs=tuple(entry for event in events for entry in event.logprobs),
        cached_tokens=sum(event.cached_tokens for event in events),
        prefill_seconds=sum(event.prefill_seconds for event in events),
    )


class Deltas:
    """The tokens that wait, by sequence (`Sampling.delta_tokens`)."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Tokens]] = {}

    def take(self, sequence: TokenSequence, event: Tokens) -> list[Tokens]:
        """One more event of a sequence; returns what is told now, at most one event."""
        wanted = sequence.request.sampling.delta_tokens
        if wanted == 1 or sequence.new_tokens <= 1:
            return [event]
        waiting = self._waiting.setdefault(sequence.request_id, [])
        waiting.append(event)
        if event.finish is None and len(waiting) < wanted:
            return []
        return self.rest(sequence)

    def rest(self, sequence: TokenSequence) -> list[Tokens]:
        """What waits of a sequence that ends, at most one event; nothing of it waits any more."""
        waiting = self._waiting.pop(sequence.request_id, None)
        return [joined(waiting)] if waiting else []
