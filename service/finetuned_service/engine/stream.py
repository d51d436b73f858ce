"""One request's events on their way from the engine to whoever reads them. asyncio, torch-free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from finetuned_service.engine.deltas import joined
from finetuned_service.engine.messages import Encoded, Failed, Started, Tokens
from finetuned_service.errors import Internal, from_wire


class EngineStream:
    """An asynchronous iterator over Started and Tokens; its last has `finish` set.

    Tokens that came while the reader was busy are one event: a reader that is slower than the engine, as all
    are together on a full machine, gets fewer and longer ones instead of falling behind.

    Iterating raises the FinetunedError with which a request ends, and Unavailable if the engine dies.
    Leaving early (`aclose`, `async with`, or a cancelled `__anext__`) cancels the request.
    """

    def __init__(self, request_id: int, leave: Callable[[int], None]) -> None:
        """Made by EngineClient. `leave` is told the id when the reader goes before the end."""
        self.request_id = request_id
        self._leave = leave
        self._events: asyncio.Queue[Started | Tokens | Encoded | Failed] = asyncio.Queue()
        self._over = False

    def feed(self, event: Started | Tokens | Encoded | Failed) -> bool:
        """The client's side: one more event. True if it is the last."""
        self._events.put_nowait(event)
        return isinstance(event, Failed | Encoded) or (isinstance(event, Tokens) and event.finish is not None)

    async def encoded(self) -> tuple[Started, Encoded]:
        """Both events of an input that is encoded; leaving early cancels it.

        Raises:
            FinetunedError: with which it ends.
        """
        started: Started | None = None
        async with self:
            while True:
                event = await self._events.get()
                if isinstance(event, Started):
                    started = event
                    continue
                self._over = True
                if isinstance(event, Failed):
                    raise from_wire(event.error)
                if started is None or not isinstance(event, Encoded):
                    raise Internal.opaque()
                return started, event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Started | Tokens:
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(event, Failed):
            self._over = True
            raise from_wire(event.error)
        if isinstance(event, Encoded):
            raise Internal.opaque()  # asked for with `encoded`
        if isinstance(event, Tokens):
            event = self._with_what_came(event)
            self._over = event.finish is not None
        return event

    def _with_what_came(self, first: Tokens) -> Tokens:
        events = [first]
        while not self._events.empty():
            following = self._events.get_nowait()
            if not isinstance(following, Tokens):
                self._events.put_nowait(following)  # Failed, the last of all: nothing can overtake it
                break
            events.append(following)
        return joined(events)

    async def aclose(self) -> None:
        """Cancel the request if it has not ended; harmless to repeat."""
        if not self._over:
            self._over = True
            self._leave(self.request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
