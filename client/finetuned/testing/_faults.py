"""Faults on demand: the next calls of an RPC fail, before, between or after their messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import grpc
from google.protobuf.message import Message

from finetuned.errors import FinetunedError, Unauthenticated
from finetuned.testing._refusals import abort


@final
@dataclass(slots=True)
class Fault:
    error: FinetunedError
    times: int
    broken: bool
    """Without details, as a lost connection."""
    after_messages: int = 0
    after_answer: bool = False
    """The call is carried out, and fails instead of answering."""


@final
@dataclass(slots=True)
class Faults:
    """The faults still to come, and the requests that came."""

    _planned: dict[str, list[Fault]] = field(default_factory=dict[str, list[Fault]])
    _requests: dict[str, list[list[Message]]] = field(default_factory=dict[str, list[list[Message]]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, rpc: str, fault: Fault) -> None:
        with self._lock:
            self._planned.setdefault(rpc, []).append(fault)

    def requests(self, rpc: str) -> list[list[Message]]:
        with self._lock:
            return [list(messages) for messages in self._requests.get(rpc, [])]

    def take(self, rpc: str, messages: list[Message]) -> Fault | None:
        """The fault that a call is to suffer; its request messages are kept as they come in."""
        with self._lock:
            self._requests.setdefault(rpc, []).append(messages)
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
        codec = handler.request_deserializer, handler.response_serializer
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._streaming(rpc, handler.unary_stream), *codec)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._receiving(rpc, handler.stream_unary), *codec)
        assert handler.unary_unary is not None
        return grpc.unary_unary_rpc_method_handler(self._answering(rpc, handler.unary_unary), *codec)

    def _open(self, rpc: str, context: grpc.ServicerContext, messages: list[Message]) -> Fault | None:
        if self._api_key is not None:
            sent = dict(context.invocation_metadata()).get("authorization")
            if sent != f"Bearer {self._api_key}":
                abort(context, Unauthenticated("the API key is missing or wrong; set FINETUNED_API_KEY"))
        fault = self._faults.take(rpc, messages)
        if fault is not None and not fault.after_messages and not fault.after_answer:
            abort(context, fault.error, broken=fault.broken)
        return fault

    def _answering(self, rpc: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def behave(request: Message, context: grpc.ServicerContext) -> Any:
            fault = self._open(rpc, context, [request])
            return _answer(lambda: answer(request, context), context, fault)

        return behave

    def _receiving(self, rpc: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def behave(requests: Iterator[Message], context: grpc.ServicerContext) -> Any:
            messages: list[Message] = []
            fault = self._open(rpc, context, messages)

            def until_fault() -> Iterator[Message]:
                for message in requests:
                    messages.append(message)
                    yield message
                    if fault is not None and len(messages) == fault.after_messages:
                        abort(context, fault.error, broken=fault.broken)

            return _answer(lambda: answer(until_fault(), context), context, fault)

        return behave

    def _streaming(self, rpc: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def behave(request: Message, context: grpc.ServicerContext) -> Iterator[Any]:
            fault = self._open(rpc, context, [request])
            try:
                for number, message in enumerate(answer(request, context), start=1):
                    yield message
                    if fault is not None and number == fault.after_messages:
                        abort(context, fault.error, broken=fault.broken)
            except FinetunedError as error:
                abort(context, error)

        return behave


def _answer(answer: Callable[[], Any], context: grpc.ServicerContext, fault: Fault | None) -> Any:
    try:
        found = answer()
    except FinetunedError as error:
        abort(context, error)
    if fault is not None and fault.after_answer:
        abort(context, fault.error, broken=fault.broken)
    return found
