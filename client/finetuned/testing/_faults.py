"""Faults on demand: the next calls of an RPC fail, before or after some messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import grpc

from finetuned.errors import FinetunedError, Unauthenticated
from finetuned.testing._refusals import abort


@final
@dataclass(slots=True)
class Fault:
    error: FinetunedError
    times: int
    after_messages: int
    broken: bool


@final
@dataclass(slots=True)
class Faults:
    """The faults still to come, and how often each RPC was called."""

    _planned: dict[str, list[Fault]] = field(default_factory=dict[str, list[Fault]])
    _calls: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, rpc: str, fault: Fault) -> None:
        with self._lock:
            self._planned.setdefault(rpc, []).append(fault)

    def calls(self, rpc: str) -> int:
        with self._lock:
            return self._calls.get(rpc, 0)

    def take(self, rpc: str) -> Fault | None:
        """Counts a call; the fault that it is to suffer."""
        with self._lock:
            self._calls[rpc] = self._calls.get(rpc, 0) + 1
            queue = self._planned.get(rpc, [])
            if not queue:
                return None
            fault = queue[0]
            fault.times -= 1
            if fault.times == 0:
                queue.pop(0)
            return fault


@final
class Gate(grpc.ServerInterceptor):
    """Stands before every handler: checks the API key, plays the faults, translates refusals."""

    def __init__(self, faults: Faults, api_key: str | None) -> None:
        self._faults = faults
        self._api_key = api_key

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        rpc = handler_call_details.method.rpartition("/")[2]
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(rpc, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._receiving(rpc, handler.stream_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._answering(rpc, handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _open(self, rpc: str, context: grpc.ServicerContext) -> Fault | None:
        if self._api_key is not None:
            sent = dict(context.invocation_metadata()).get("authorization")
            if sent != f"Bearer {self._api_key}":
                abort(context, Unauthenticated("the API key is missing or wrong; set FINETUNED_API_KEY"))
        fault = self._faults.take(rpc)
        if fault is not None and fault.after_messages == 0:
            abort(context, fault.error, broken=fault.broken)
        return fault

    def _answering(self, rpc: str, answer: Callable[..., Any] | None) -> Callable[..., Any]:
        assert answer is not None

        def behave(request: Any, context: grpc.ServicerContext) -> Any:
            self._open(rpc, context)
            try:
                return answer(request, context)
            except FinetunedError as error:
                abort(context, error)

        return behave

    def _streaming(self, rpc: str, answer: Callable[..., Any] | None) -> Callable[..., Any]:
        assert answer is not None

        def behave(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            fault = self._open(rpc, context)
            try:
                for number, message in enumerate(answer(request, context), start=1):
                    yield message
                    if fault is not None and number == fault.after_messages:
                        abort(context, fault.error, broken=fault.broken)
            except FinetunedError as error:
                abort(context, error)

        return behave

    def _receiving(self, rpc: str, answer: Callable[..., Any] | None) -> Callable[..., Any]:
        assert answer is not None

        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            fault = self._open(rpc, context)

            def until_fault() -> Iterator[Any]:
                for number, message in enumerate(requests, start=1):
                    yield message
                    if fault is not None and number == fault.after_messages:
                        abort(context, fault.error, broken=fault.broken)

            try:
                return answer(until_fault(), context)
            except FinetunedError as error:
                abort(context, error)

        return behave
