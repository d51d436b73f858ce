"""One interceptor around every RPC: errors become statuses, calls are counted and logged.

Handlers raise errors of the house and know nothing of statuses. What is not one of ours is a fault of
ours: the caller gets an opaque id, the log gets the cause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from grpc_status import rpc_status

from finetuned_service.errors import FinetunedError, Internal
from finetuned_service.metrics import Metrics
from finetuned_service.rpc.status import status_of
from finetuned_service.telemetry.logs import logger

_LOG = logger("rpc")
Handler = grpc.RpcMethodHandler[Any, Any]
_UNOBSERVED = ("/grpc.health.", "/grpc.reflection.")


class Boundary(aio.ServerInterceptor):
    """The border between gRPC and the house."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_UNOBSERVED):
            return handler
        name = method.rsplit("/", 1)[-1]
        unary: dict[str, Any] = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(name, handler.unary_unary), **unary)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(name, handler.stream_unary), **unary)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, handler.unary_stream), **unary)
        return grpc.stream_stream_rpc_method_handler(self._stream(name, handler.stream_stream), **unary)

    def _unary(self, name: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            started = self._begin()
            code = "OK"
            try:
                return await behaviour(request, context)
            except BaseException as error:
                code = await self._end_with(error, name, context)
                raise
            finally:
                self._end(name, code, started)

        return call

    def _stream(
        self, name: str, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            started = self._begin()
            code = "OK"
            try:
                async for response in behaviour(request, context):
                    yield response
            except BaseException as error:
                code = await self._end_with(error, name, context)
                raise
            finally:
                self._end(name, code, started)

        return call

    def _begin(self) -> float:
        self._metrics.rpcs_running.inc()
        return time.perf_counter()

    def _end(self, name: str, code: str, started: float) -> None:
        self._metrics.rpcs_running.dec()
        self._metrics.rpcs.labels(name, code).inc()
        self._metrics.rpc_seconds.labels(name).observe(time.perf_counter() - started)

    async def _end_with(self, error: BaseException, name: str, context: aio.ServicerContext[Any, Any]) -> str:
        """Abort the call with the error's status, unless the caller is gone; returns the code's name."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            return "CANCELLED"
        if not isinstance(error, FinetunedError):
            opaque = Internal.opaque()
            _LOG.error("rpc_fault", method=name, exc_info=error, **opaque.metadata)
            error = opaque
        status: Any = rpc_status.to_status(status_of(error))
        await _abort(context, status)
        return error.status


async def _abort(context: aio.ServicerContext[Any, Any], status: Any) -> None:
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except aio.AbortError:
        # abort() always raises; the call is over all the same and the first error goes on up.
        return
