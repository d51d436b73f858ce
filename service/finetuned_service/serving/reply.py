"""The reply to one input: engine events in, text out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from finetuned_service.engine.messages import FinishReason, Started, Tokens
from finetuned_service.metrics import ServerMetrics
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
    sample: int
    prompt_tokens: int
    truncated_tokens: int
    text: TextStream
    metrics: ServerMetrics
    model: str
    """"adapter" or "base", for metrics."""
    arrived: float
    """When the call came, by `time.perf_counter`."""
    accepted: float = field(default_factory=time.perf_counter)
    started: Started | None = None
    outcome: Outcome | None = None
    timing: Timing = field(default_factory=Timing)
    completion_tokens: int = 0
    cached_tokens: int = 0
    prefill_seconds: float = 0.0

    async def follow(self, submit: Callable[[], EventStream]) -> AsyncGenerator[Started | Delta]:
        """The engine's events as deltas, ended by the engine or by a stop string.

        The sequence is submitted when somebody begins to listen, and not before: from then on leaving
        early, also by a stop string, cancels it in the engine.
        """
        try:
            async with aclosing(submit()) as source:
                async for piece in self._deltas(source):
                    yield piece
        except BaseException as error:
            if self.outcome is None:
                gone = isinstance(error, (asyncio.CancelledError, GeneratorExit))
                self._count_end("left" if gone else "failed")
            raise

    async def _deltas(self, source: EventStream) -> AsyncGenerator[Started | Delta]:
        last = self.accepted
        async for event in source:
            if isinstance(event, Started):
                self._start(event)
                yield event
                continue
            now = time.perf_counter()
            self.cached_tokens += event.cached_tokens
            self.prefill_seconds += event.prefill_seconds
            text, told = self._pushed(event)
            self._count_tokens(len(told.token_ids), now, now - last)
            last = now
            rest = self.text.finish() if event.finish is not None else ""
            if text or rest or told.token_ids:
                yield Delta(self.input, text + rest, told.token_ids, told.logprobs, self.sample)
            if self.text.stopped is not None:
                self._end(FinishReason.STOP, self.text.stopped, event, now)
                return
            if event.finish is not None:
                self._end(event.finish, "", event, now)
                return

    def _pushed(self, event: Tokens) -> tuple[str, Tokens]:
        """What an event adds to the text, and the event with the tokens that belong to the reply. Those that were computed
        until a stop string was found do not: how many they are is a matter of who was faster.
        """
        if not self.text.may_stop:
            return self.text.push(event.token_ids).text, event
        text = ""
        for count, token_id in enumerate(event.token_ids, start=1):
            text += self.text.push((token_id,)).text
            if self.text.stopped is not None:
                ids, logprobs = event.token_ids[:count], event.logprobs[:count]
                return text, replace(event, token_ids=ids, logprobs=logprobs)
        return text, event

    def _start(self, event: Started) -> None:
        self.started = event
        self.metrics.queue_seconds.labels(self.model).observe(event.queue_seconds)
        if event.modules_changed:
            self.metrics.adapter_wait_seconds.observe(event.load_seconds)
        if self.sample == 0:  # the others have the same prompt
            self.metrics.prompt_tokens.observe(self.prompt_tokens)
            self.metrics.tokens.labels("prompt", self.model).inc(self.prompt_tokens)

    def _count_tokens(self, new_tokens: int, now: float, seconds: float) -> None:
        """`seconds` have passed since the message before; the tokens of one message share them."""
        following = new_tokens
        if new_tokens and self.completion_tokens == 0:
            self.metrics.first_token_seconds.labels(self.model).observe(now - self.arrived)
            following, seconds = new_tokens - 1, 0.0  # those beside the first came with it
        if following:
            between = self.metrics.inter_token_seconds.labels(self.model)
            for _ in range(following):
                between.observe(seconds / following)
        self.completion_tokens += new_tokens
        self.metrics.tokens.labels("completion", self.model).inc(new_tokens)

    def _count_end(self, finish: str) -> None:
        self.metrics.sequences.labels(self.model, finish).inc()
        self.metrics.completion_tokens.observe(self.completion_tokens)

    def _end(self, finish: FinishReason, stop: str, event: Tokens, now: float) -> None:
        started = self.started or Started(0, 0, 0.0, 0.0)
        waited = started.queue_seconds + started.load_seconds
        prefill = self.prefill_seconds
        # A stop string is found here, before the engine knows: the time since acceptance stands in.
        decode = event.decode_seconds or max(0.0, now - self.accepted - waited - prefill)
        self.outcome = Outcome(finish, stop, self.truncated_tokens)
        self.timing = Timing(started.queue_seconds, started.load_seconds, prefill, decode)
        if prefill:
            self.metrics.prefill_seconds.labels(self.model).observe(prefill)
        self._count_end(finish.lower())
