"""A call as a value: what to send, how to read the answer, what may be repeated."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar, final

from google.protobuf.message import Message

from finetuned.errors import FinetunedError

T = TypeVar("T")
Item = TypeVar("Item")


class Kind(StrEnum):
    """Chooses the default deadline; `_deadlines.py` has a field for each."""

    READ = "read"
    WRITE = "write"
    LOAD = "load"
    TRANSFER = "transfer"
    GENERATE = "generate"
    WATCH = "watch"


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the contract."""

    service: str
    name: str
    response: type[Message]

    @property
    def path(self) -> str:
        return f"/finetuned.v1.{self.service}/{self.name}"


@final
@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, one answer."""

    method: Method
    request: Message
    parse: Callable[[Any], T]
    kind: Kind = Kind.READ
    repeatable: bool = True
    """Whether a repeated call leaves the same state and gives the same answer."""
    patient: bool = False
    """Retry until the deadline instead of a few times."""
    timeout_seconds: float | None = None
    """Instead of the kind's deadline."""

    def next_page(self: Call[Page[Item]], page: Page[Item]) -> Call[Page[Item]] | None:
        """The call for what follows `page`; None after the last one."""
        if not page.next_page_token:
            return None
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.MergeFrom(type(request)(page_token=page.next_page_token))
        return dataclasses.replace(self, request=request)


@final
@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    items: tuple[Item, ...]
    next_page_token: str


@final
@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """One request, many answers. Retried before the first answer; after it only with `resume`."""

    method: Method
    request: Message
    parse: Callable[[Any], T]
    kind: Kind
    resume: Callable[[T], Message | None] | None = None
    """The request that goes on after the last answer seen; None if that was the end."""
    recover: Callable[[FinetunedError], Message | None] | None = None
    """The request that goes on in spite of an error that no retry cures; None if there is none."""
    timeout_seconds: float | None = None
    """Bound of the whole stream with its reconnections; None is no bound where `resume` is set."""


@final
@dataclass(frozen=True, slots=True)
class SendCall(Generic[T]):
    """Many messages, one answer."""

    method: Method
    messages: Callable[[int], Iterator[Message]]
    """The messages from an offset in bytes on."""
    parse: Callable[[Any], T]
    committed_bytes: Call[int] | None = None
    """Asks where a broken stream goes on; without it, it starts again at 0."""


def new_request_id() -> str:
    """Makes a creating call repeatable: the service answers a second one with the same resource."""
    return uuid.uuid4().hex
