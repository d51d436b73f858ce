"""Whose resources a request is about, checked for every call in one place.

The subject of a call is its `name` or its `parent`; of a stream, those (or the `adapter`) of its `start`.
Other names in a request are compared with its subject by the handlers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from google.protobuf.message import Message

from finetuned_service.tenancy.caller import Caller

SUBJECT_FIELDS = ("name", "parent")
START_FIELDS = ("parent", "adapter")


def checked(caller: Caller, request: Any) -> Any:
    """The request, or the stream of them, if its subject may be named by the caller.

    Raises:
        NotFound: it may not; a stream raises when the message at fault is read.
    """
    if isinstance(request, AsyncIterator):
        return _each_checked(caller, request)
    for name in subjects(request):
        caller.check_name(name)
    return request


def subjects(request: Message) -> Iterator[str]:
    """The names of what a request is about; none if it is about the server."""
    yield from _named(request, SUBJECT_FIELDS)
    if "start" in request.DESCRIPTOR.fields_by_name and request.HasField("start"):
        yield from _named(getattr(request, "start"), START_FIELDS)  # noqa: B009 - a field


def _named(message: Message, fields: tuple[str, ...]) -> Iterator[str]:
    for field in fields:
        if field in message.DESCRIPTOR.fields_by_name:
            yield getattr(message, field)


async def _each_checked(caller: Caller, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield checked(caller, request)
