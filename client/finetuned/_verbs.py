"""Makes methods of `Client` and its rooms from the builders in `_calls/`.

A verb is defined once, as a function from names and arguments to a call. Wrapped here it is a method
with the same arguments, documentation and types that runs the call; `_aio_verbs.py` makes the awaitable
twin. So the two clients cannot drift apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from finetuned._calls import serving
from finetuned._calls.call import Call, Page, SendCall, StreamCall
from finetuned._calls.encoding import GatheredCall
from finetuned._names import Names
from finetuned._replies import ReplyStream
from finetuned._transport import Transport
from finetuned.values.replies import Reply
from finetuned.values.requests import GenerateRequest

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

GENERATE_DOC = """Answer a prompt; the arguments are those of `GenerateRequest`.

Args:
    prompt: a text (one user turn), a list of messages, or `RawText`.
    adapter: for example "redact", "redact@prod" or "redact@3"; or else
    plain_base: True to ask the base without any adapter.

Raises:
    NotFound: there is no such adapter.
    PromptTooLong: prompt and reply do not fit the context.
    AdapterIncompatible: the adapter was made for another base.
    QueueFull: too many requests wait, and still did after some retries.
"""


class Room(Protocol):
    """What has verbs: the client and its rooms."""

    @property
    def transport(self) -> Transport: ...


def dress(method: Method, source: Callable[..., Any], doc: str | None = None) -> Method:
    """Give a method the documentation and arguments of what it was made from, for `help` and notebooks."""
    signature = inspect.signature(source)
    kept = [item for item in signature.parameters.values() if item.name != "names"]
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__name__ = source.__name__
    method.__doc__ = doc or source.__doc__
    method.__dict__["__signature__"] = inspect.Signature([this, *kept])
    return method


def verb(build: Callable[Concatenate[Names, P], Call[T]]) -> Callable[Concatenate[Room, P], T]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> T:
        return room.transport.call(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def paged(
    build: Callable[Concatenate[Names, P], Call[Page[T]]],
) -> Callable[Concatenate[Room, P], Generator[T]]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return room.transport.pages(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def streamed(
    build: Callable[Concatenate[Names, P], StreamCall[T]],
) -> Callable[Concatenate[Room, P], Generator[T]]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return room.transport.stream(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def sent(build: Callable[Concatenate[Names, P], SendCall[T]]) -> Callable[Concatenate[Room, P], T]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> T:
        return room.transport.send(build(room.transport.names, *args, **kwargs))

    return dress(method, build)


def gathered(
    build: Callable[Concatenate[Names, P], GatheredCall[T]],
) -> Callable[Concatenate[Room, P], T]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> T:
        call = build(room.transport.names, *args, **kwargs)
        return call.gather(list(room.transport.stream(call.stream)))

    return dress(method, build)


def replied(build: Callable[P, GenerateRequest]) -> Callable[Concatenate[Room, P], Reply]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> Reply:
        call = serving.serve_whole(room.transport.names, build(*args, **kwargs))
        with ReplyStream(room.transport.stream(call)) as stream:
            return stream.finish()

    return dress(method, build, GENERATE_DOC)


def reply_streamed(build: Callable[P, GenerateRequest]) -> Callable[Concatenate[Room, P], ReplyStream]:
    def method(room: Room, *args: P.args, **kwargs: P.kwargs) -> ReplyStream:
        call = serving.serve(room.transport.names, build(*args, **kwargs))
        return ReplyStream(room.transport.stream(call))

    return dress(method, build, GENERATE_DOC + "\nReturns a `ReplyStream`: iterate over its deltas.\n")
