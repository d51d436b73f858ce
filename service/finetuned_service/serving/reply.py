"""The reply to one input: engine events in, text out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from finetuned_service.engine.messages import FinishReason, Started, Tokens
from finetuned_service.metrics import Metrics
from finetuned_service.serving.values import Delta, Outcome, Timing
from finetuned_service.text.stream import TextStream


class EventStream(Protocol):
    """What the engine says of one sequence; `aclose` before its end cancels it."""

    def __aiter__(self) -> AsyncIterator[Started | Tokens]: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Reply:
    """One sequence in progress; `outcome` and `timing` are set at its end."""

    input: int
    truncated_tokens: int
    text: TextStream
    metrics: Metrics
    model: str
    """"adapter" or "base", for metrics."""
    accepted: float = field(default_factory=time.perf_counter)
    started: Started | None = None
    outcome: Outcome | None = None
    timing: Timing = field(default_factory=Timing)
    completion_tokens: int = 0

    async def follow(self, submit: Callable[[], EventStream]) -> AsyncGenerator[Started | Delta]:
        """The engine's events as deltas, ended by the engine or by a stop string.

        The sequence is submitted when somebody begins to listen, and not before: from then on leaving
        early, also by a stop string, cancels it in the engine.
        """
        last = self.accepted
        async with aclosing(submit()) as source:
            async for event in source:
                if isinstance(event, Started):
                    self.started = event
                    yield event
                    continue
                now = time.perf_counter()
                self._observe(event, now - last)
                last = now
                piece = self.text.push(event.token_ids)
                rest = self.text.finish() if event.finish is not None else ""
                self.completion_tokens += len(event.token_ids)
                if piece.text or rest or event.token_ids:
                    yield Delta(self.input, piece.text + rest, event.token_ids, event.logprobs)
                if self.text.stopped is not None:
                    self._end(FinishReason.STOP, self.text.stopped, event, now)
                    return
                if event.finish is not None:
                    self._end(event.finish, "", event, now)
                    return

    def _observe(self, event: Tokens, seconds: float) -> None:
        if not event.token_ids:
            return
        if self.completion_tokens == 0:
            self.metrics.first_token_seconds.observe(seconds)
        else:
            self.metrics.inter_token_seconds.observe(seconds / len(event.token_ids))

    def _end(self, finish: FinishReason, stop: str, event: Tokens, now: float) -> None:
        started = self.started or Started(0, 0, 0.0, 0.0)
        waited = started.queue_seconds + started.load_seconds
        prefill = event.prefill_seconds
        # A stop string is found here, before the engine knows: the time since acceptance stands in.
        decode = event.decode_seconds or max(0.0, now - self.accepted - waited - prefill)
        self.outcome = Outcome(finish, stop, self.truncated_tokens)
        self.timing = Timing(started.queue_seconds, started.load_seconds, prefill, decode)
        self.metrics.sequences.labels(self.model, finish.lower()).inc()
        self.metrics.tokens.labels("completion").inc(self.completion_tokens)
