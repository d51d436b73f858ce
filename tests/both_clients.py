"""`AsyncClient` behind the blocking interface of `Client`, so that one test proves both."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetuned import AsyncClient, Client, RetryPolicy

RETRIES = RetryPolicy(first_delay_seconds=0.001)
"""As many as by default, but soon."""


def write_rows(path: Path, count: int = 3, width: int = 1) -> Path:
    """A dataset's file of `count` rows with some `width` bytes each."""
    rows = [{"prompt": f"{number} " + "x" * width, "completion": "y"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Blocking:
    """Runs what is awaitable on an event loop of its own; wraps rooms and streams the same way."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return self._settle(getattr(self._target, name))

    def __iter__(self) -> Iterator[Any]:
        iterator: AsyncIterator[Any] = aiter(self._target)
        while True:
            try:
                yield self._loop.run_until_complete(anext(iterator))
            except StopAsyncIteration:
                return

    def __next__(self) -> Any:
        return self._loop.run_until_complete(anext(self._target))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._target.close())

    def _settle(self, found: Any) -> Any:
        if inspect.isawaitable(found):
            return self._settle(self._loop.run_until_complete(found))
        if callable(found):
            return lambda *args, **kwargs: self._settle(found(*args, **kwargs))
        module = type(found).__module__
        wrapped = module in {"finetuned._aio_client", "finetuned._replies"} or inspect.isasyncgen(found)
        return Blocking(found, self._loop) if wrapped else found


def open_client(kind: str, endpoint: str, **options: Any) -> Any:
    """A context manager that gives a `Client`, or an `AsyncClient` that looks like one."""
    options = {"tenant": "a", "retry": RETRIES, **options}
    return Client(endpoint, **options) if kind == "sync" else _OwnLoop(endpoint, options)


class _OwnLoop:
    def __init__(self, endpoint: str, options: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = Blocking(AsyncClient(endpoint, **options), self._loop)

    def __enter__(self) -> Blocking:
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
