"""Makes the awaitable methods of `AsyncClient` and its rooms; see `_verbs.py`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from finetuned._aio import AsyncTransport
from finetuned._calls import serving
from finetuned._calls.call import Call, Page, SendCall, StreamCall
from finetuned._calls.encoding import GatheredCall
from finetuned._names import Names
from finetuned._replies import AsyncReplyStream
from finetuned._verbs import GENERATE_DOC, dress
from finetuned.values.replies import Reply
from finetuned.values.requests import GenerateRequest

P = ParamSpec("P")
T = TypeVar("T")


class AsyncRoom(Protocol):
    """What has verbs: the client and its rooms."""

    @property
    def transport(self) -> AsyncTransport: ...


def verb(
    build: Callable[Concatenate[Names, P], Call[T]],
) -> Callable[Concatenate[AsyncRoom, P], Coroutine[Any, Any, T]]:
    async def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> T:
        return await room.transport.call(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def paged(
    build: Callable[Concatenate[Names, P], Call[Page[T]]],
) -> Callable[Concatenate[AsyncRoom, P], AsyncGenerator[T]]:
    def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return room.transport.pages(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def streamed(
    build: Callable[Concatenate[Names, P], StreamCall[T]],
) -> Callable[Concatenate[AsyncRoom, P], AsyncGenerator[T]]:
    def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return room.transport.stream(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def sent(
    build: Callable[Concatenate[Names, P], SendCall[T]],
) -> Callable[Concatenate[AsyncRoom, P], Coroutine[Any, Any, T]]:
    async def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> T:
        return await room.transport.send(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def gathered(
    build: Callable[Concatenate[Names, P], GatheredCall[T]],
) -> Callable[Concatenate[AsyncRoom, P], Coroutine[Any, Any, T]]:
    async def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> T:
        call = build(room.transport.names, *args, **kwargs)
        async with aclosing(room.transport.stream(call.stream)) as events:
            return call.gather([event async for event in events])

    return dress(method, build)


def replied(
    build: Callable[P, GenerateRequest],
) -> Callable[Concatenate[AsyncRoom, P], Coroutine[Any, Any, Reply]]:
    async def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> Reply:
        call = serving.serve_whole(room.transport.names, build(*args, **kwargs))
        async with await AsyncReplyStream.open(room.transport.stream(call)) as stream:
            return await stream.finish()

    return dress(method, build, GENERATE_DOC)


def reply_streamed(
    build: Callable[P, GenerateRequest],
) -> Callable[Concatenate[AsyncRoom, P], Coroutine[Any, Any, AsyncReplyStream]]:
    async def method(room: AsyncRoom, *args: P.args, **kwargs: P.kwargs) -> AsyncReplyStream:
        call = serving.serve(room.transport.names, build(*args, **kwargs))
        return await AsyncReplyStream.open(room.transport.stream(call))

    return dress(method, build, GENERATE_DOC + "\nReturns an `AsyncReplyStream`: iterate over its deltas.\n")
