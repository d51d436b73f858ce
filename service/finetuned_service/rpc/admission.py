"""Counts every call against its tenant's limits before the call is looked at.

Inside `Boundary`, which turns the refusal into a status. Whose call it is stands in its first message; what
names no tenant is counted for nobody, and is refused or answered by its handler. Health has a port of its
own, and reflection is left alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc import aio

from finetuned_service.names import ID_PATTERN
from finetuned_service.tenancy.traffic import Traffic

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_OURS = "/finetuned."
_LONG_CALLS = ("/BatchServeAdapter",)
"""Answered with one message, but as long on their way as a stream."""
_TENANT = re.compile(rf"tenants/({ID_PATTERN})(?:/.*)?")


class Admission(aio.ServerInterceptor):
    """Admits calls, or refuses them with the limit that they would exceed."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(_OURS):
            return handler
        coded: dict[str, Any] = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            counted = self._answer(handler.unary_unary, streams=method.endswith(_LONG_CALLS))
            return grpc.unary_unary_rpc_method_handler(counted, **coded)
        if handler.stream_unary:
            counted = self._answer(handler.stream_unary, streams=True)
            return grpc.stream_unary_rpc_method_handler(counted, **coded)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream), **coded)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream), **coded)

    def _answer(
        self, behaviour: Callable[..., Awaitable[Any]], *, streams: bool
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            first, request = await _first_message(request)
            with self._admitted(first, streams=streams):
                return await behaviour(request, context)

        return call

    def _stream(self, behaviour: Callable[..., AsyncGenerator[Any]]) -> Callable[..., AsyncGenerator[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncGenerator[Any]:
            first, request = await _first_message(request)
            # aclosing: a caller that goes away gives its place back now, not at collection.
            with self._admitted(first, streams=True):
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        return call

    def _admitted(self, first: Message | None, *, streams: bool) -> AbstractContextManager[None]:
        tenant = tenant_of(first)
        if tenant is None:
            return nullcontext()
        self._traffic.admit_call(tenant)
        return self._traffic.stream(tenant) if streams else nullcontext()


def tenant_of(request: Message | None) -> str | None:
    """The tenant of the first field that names one, in the order of their numbers; of a stream's start too.

    Fields that hold what callers write (prompts, rows) are not names: only the first level of strings, and
    that of `start`, is looked at.
    """
    if request is None:
        return None
    for _, value in request.ListFields():
        found = _TENANT.fullmatch(value) if isinstance(value, str) else None
        if found is not None:
            return found.group(1)
    start = request.DESCRIPTOR.fields_by_name.get("start")
    return tenant_of(getattr(request, "start")) if start is not None else None  # noqa: B009 - a field


async def _first_message(request: Any) -> tuple[Message | None, Any]:
    """The request's first message, and the request as if nobody had looked."""
    if isinstance(request, Message):
        return request, request
    rest = aiter(request)
    try:
        first: Message | None = await anext(rest)
    except StopAsyncIteration:
        first = None
    return first, _again([] if first is None else [first], rest)


async def _again(seen: Iterable[Message], rest: AsyncIterator[Message]) -> AsyncIterator[Message]:
    for message in seen:
        yield message
    async for message in rest:
        yield message
