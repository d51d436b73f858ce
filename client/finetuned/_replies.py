"""A reply as it arrives: `client.stream` returns these, `client.generate` drains them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import final

from finetuned._calls.serving import reply_of, sample_of
from finetuned.errors import Internal
from finetuned.values.replies import Delta, Done, Reply, ReplyTokens, Sample, ServedBy, ServeEvent


@final
@dataclass(slots=True)
class ReplyParts:
    """What has arrived of a reply so far."""

    _served_by: ServedBy | None = None
    _deltas: list[Delta] = field(default_factory=list[Delta])
    _done: Done | None = None

    def add(self, event: ServeEvent) -> Delta | None:
        """The delta of an event, if it is one."""
        if event.started is not None:
            self._served_by = event.started.served_by
        elif event.done is not None:
            self._done = event.done
        elif event.delta is not None:
            self._deltas.append(event.delta)
        return event.delta

    @property
    def started(self) -> bool:
        return self._served_by is not None

    @property
    def served_by(self) -> ServedBy:
        if self._served_by is None:
            raise Internal("the server sent no `started` before the reply")
        return self._served_by

    def reply(self) -> Reply:
        if self._done is None:
            raise Internal("the reply is not complete: the stream ended, or was left, before `done`")
        samples = [self._sample(self._done, place) for place in range(max(1, len(self._done.outcomes)))]
        return reply_of(samples, self.served_by, self._done)

    def _sample(self, done: Done, place: int) -> Sample:
        deltas = [delta for delta in self._deltas if delta.sample == place]
        tokens = ReplyTokens(
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            logprobs=tuple(item for delta in deltas for item in delta.logprobs),
        )
        return sample_of("".join(delta.text for delta in deltas), done, place, tokens)


@final
class ReplyStream:
    """The deltas of one reply, or of its samples as they come; who serves it is known before the first.

        with client.stream("...", adapter="redact") as stream:
            for delta in stream:
                print(delta.text, end="")
        print(stream.served_by.label)

    Leaving the block before the end cancels the request on the server.
    """

    def __init__(self, events: Generator[ServeEvent]) -> None:
        self._events = events
        self._parts = ReplyParts()
        for event in events:
            self._parts.add(event)
            if self._parts.started:
                break
        self.served_by: ServedBy = self._parts.served_by

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> Delta:
        for event in self._events:
            delta = self._parts.add(event)
            if delta is not None:
                return delta
        raise StopIteration

    def finish(self) -> Reply:
        """Read what is left, and give the whole reply."""
        for _ in self:
            pass
        return self._parts.reply()

    def close(self) -> None:
        """Stop; cancels the request if it is not complete."""
        self._events.close()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class AsyncReplyStream:
    """`ReplyStream` for asyncio.

    async with await client.stream("...", adapter="redact") as stream:
        async for delta in stream:
            print(delta.text, end="")
    """

    def __init__(self, events: AsyncGenerator[ServeEvent], parts: ReplyParts) -> None:
        self._events = events
        self._parts = parts
        self.served_by: ServedBy = parts.served_by

    @classmethod
    async def open(cls, events: AsyncGenerator[ServeEvent]) -> AsyncReplyStream:
        parts = ReplyParts()
        async for event in events:
            parts.add(event)
            if parts.started:
                break
        return cls(events, parts)

    def __aiter__(self) -> AsyncReplyStream:
        return self

    async def __anext__(self) -> Delta:
        async for event in self._events:
            delta = self._parts.add(event)
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def finish(self) -> Reply:
        """Read what is left, and give the whole reply."""
        async for _ in self:
            pass
        return self._parts.reply()

    async def close(self) -> None:
        """Stop; cancels the request if it is not complete."""
        await self._events.aclose()

    async def __aenter__(self) -> AsyncReplyStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
