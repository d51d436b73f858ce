"""One interceptor around every RPC: callers are known, errors become statuses, calls are counted and logged.

Handlers raise errors of the house and know nothing of statuses. What is not one of ours is a fault of
ours: the caller gets an opaque id, the log gets the cause. Nothing of a call is read before its caller is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_status import rpc_status

from finetuned_service.errors import FinetunedError, Internal, InvalidField, QuotaExceeded
from finetuned_service.metrics import ServerMetrics
from finetuned_service.rpc.status import status_of
from finetuned_service.rpc.subject import checked
from finetuned_service.telemetry.logs import logger
from finetuned_service.tenancy.authenticator import Authenticator, Presented
from finetuned_service.tenancy.caller import Caller, set_caller

_LOG = logger("rpc")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_UNOBSERVED = ("/grpc.health.", "/grpc.reflection.")


class Boundary(aio.ServerInterceptor):
    """The border between gRPC and the house."""

    def __init__(self, metrics: ServerMetrics, authenticator: Authenticator) -> None:
        self._metrics = metrics
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return None
        name = method.rsplit("/", 1)[-1]
        try:
            caller = await self._authenticator.authenticate(_presented(handler_call_details))
        except Exception as error:  # noqa: BLE001 - the border: whatever it is, the caller gets a status
            # As a stream, whatever the call is: gRPC reads the message of any other before it asks us.
            return grpc.stream_stream_rpc_method_handler(self._refused(name, error))
        if method.startswith(_UNOBSERVED):
            return handler
        unary: dict[str, Any] = {
            "request_deserializer": _tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(name, caller, handler.unary_unary), **unary
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(name, caller, handler.stream_unary), **unary
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(name, caller, handler.unary_stream), **unary
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(name, caller, handler.stream_stream), **unary
        )

    def _unary(
        self, name: str, caller: Caller, behaviour: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            set_caller(caller)
            async with self._observed(name, context):
                return await behaviour(checked(caller, _understood(request)), context)

        return call

    def _stream(
        self, name: str, caller: Caller, behaviour: Callable[..., AsyncGenerator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            set_caller(caller)
            # aclosing: when the caller goes away, what the call holds is freed now, not at collection.
            async with (
                self._observed(name, context),
                aclosing(behaviour(checked(caller, _understood(request)), context)) as responses,
            ):
                async for response in responses:
                    yield response

        return call

    def _refused(self, name: str, error: Exception) -> Callable[..., Awaitable[None]]:
        async def call(_requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]) -> None:
            async with self._observed(name, context):
                raise error

        return call

    @asynccontextmanager
    async def _observed(self, name: str, context: aio.ServicerContext[Any, Any]) -> AsyncGenerator[None]:
        """Count one call, and abort it with the status of what it raises."""
        running = self._metrics.rpcs_running.labels(name)
        running.inc()
        started, code = time.perf_counter(), "OK"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 - the border: whatever it is, the caller gets a status
            refusal = error if isinstance(error, FinetunedError) else _fault(name, error)
            code = refusal.status
            self._metrics.refusals.labels(refusal.reason).inc()
            if isinstance(refusal, QuotaExceeded):
                self._metrics.quota_refusals.labels(refusal.metadata["limit"]).inc()
            status: Any = rpc_status.to_status(status_of(refusal))
            await context.abort(status.code, status.details, status.trailing_metadata)
        finally:
            running.dec()
            self._metrics.rpcs.labels(name, code).inc()
            self._metrics.rpc_seconds.labels(name).observe(time.perf_counter() - started)


def _presented(details: grpc.HandlerCallDetails) -> Presented:
    metadata = details.invocation_metadata or ()
    return Presented(tuple(str(value) for key, value in metadata if key == "authorization"))


class _Malformed:
    """Stands for a request that is not the message it should be, until a handler can refuse it."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """GRPC answers a deserializer that raises with a fault of ours; it is the caller's."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed()

    return read


def _understood(request: Any) -> Any:
    """The request, or the stream of them, with malformed ones refused."""
    if isinstance(request, _Malformed):
        raise InvalidField.one("request", "is not a message of this call; use the contract's own types")
    return _each_understood(request) if isinstance(request, AsyncIterator) else request


async def _each_understood(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _understood(request)


def _fault(name: str, error: Exception) -> FinetunedError:
    """What the caller learns of a fault of ours: an id, under which the log has the cause."""
    opaque = Internal.opaque()
    _LOG.error("rpc_fault", method=name, exc_info=error, **opaque.metadata)
    return opaque
