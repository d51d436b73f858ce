"""ServingService: inference."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1 import serving_service_pb2_grpc as grpc_pb
from grpc import aio

from finetuned_service import VERSION
from finetuned_service.bases.family import TASKS
from finetuned_service.errors import FinetunedError, InvalidField, ResourceExhausted, Unavailable
from finetuned_service.jobs.methods import methods_of
from finetuned_service.names import parse_tenant
from finetuned_service.rpc.convert.bases import base_to_proto
from finetuned_service.rpc.convert.common import TASKS as TASK_NUMBERS
from finetuned_service.rpc.convert.common import error_to_proto, method_to_proto
from finetuned_service.rpc.convert.encoding import result_to_proto
from finetuned_service.rpc.convert.serving import (
    call_from_proto,
    done_to_proto,
    event_to_proto,
    reply_tokens_to_proto,
    served_by_to_proto,
)
from finetuned_service.serving.checks import MAX_REPLIES
from finetuned_service.serving.encode import Encoding
from finetuned_service.serving.encoded_values import EncodeCall, EncodeResult
from finetuned_service.serving.ranges import MAX_DELTA_TOKENS, MAX_SAMPLES
from finetuned_service.serving.service import Serving
from finetuned_service.serving.values import Delta, Done, ServeCall, ServedBy, ServeEvent
from finetuned_service.text.grammar import MAX_CONSTRAINT_BYTES

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_BATCH_REQUESTS = 1000
_MESSAGE_MARGIN_BYTES, _FIELD_BYTES = 2**20, 16
"""For the errors of a batch, and for what frames each of its items."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What GetServerInfo tells beside the engine's own figures."""

    max_running_sequences: int
    max_queued_sequences: int
    max_upload_bytes: int
    max_line_bytes: int
    max_lora_rank: int


class _MessageRoom:
    """What one message still holds: one that is too large would lose all replies in it."""

    def __init__(self) -> None:
        self._left_bytes = MAX_MESSAGE_BYTES - _MESSAGE_MARGIN_BYTES

    def take(self, item: pb.BatchItem) -> pb.BatchItem:
        """The item, which is to be in the message.

        Raises:
            ResourceExhausted: it does not fit beside those before it.
        """
        size_bytes = item.ByteSize() + _FIELD_BYTES
        if size_bytes > self._left_bytes:
            raise ResourceExhausted(
                f"this reply takes {size_bytes / 1e6:,.1f} MB and those before it have left {self._left_bytes / 1e6:,.1f} MB "
                f"of the message's {MAX_MESSAGE_BYTES / 1e6:,.0f}; ask for fewer requests in one call, or fewer logprobs"
            )
        self._left_bytes -= size_bytes
        return item


class ServingServicer(grpc_pb.ServingServiceServicer):
    def __init__(self, serving: Serving, encoding: Encoding, limits: ServerLimits) -> None:
        self._serving = serving
        self._encoding = encoding
        self._limits = limits

    async def ServeAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.ServeAdapterRequest,
        context: aio.ServicerContext[pb.ServeAdapterRequest, pb.ServeAdapterResponse],
    ) -> AsyncIterator[pb.ServeAdapterResponse]:
        # aclosing: when the caller goes away the sequences are cancelled at once, not at collection.
        call = dataclasses.replace(call_from_proto(request), deadline_seconds=_deadline_seconds(context))
        async with aclosing(self._serve(call)) as events:
            async for event in events:
                yield event_to_proto(event)

    def _serve(self, call: ServeCall | EncodeCall) -> AsyncGenerator[ServeEvent | EncodeResult]:
        if isinstance(call, EncodeCall):
            return self._encoding.serve(call)
        return self._serving.serve(call)

    async def BatchServeAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.BatchServeAdapterRequest,
        context: aio.ServicerContext[pb.BatchServeAdapterRequest, pb.BatchServeAdapterResponse],
    ) -> pb.BatchServeAdapterResponse:
        parse_tenant(request.parent)
        if not 1 <= len(request.requests) <= MAX_BATCH_REQUESTS:
            raise InvalidField.one(
                "requests", f"has {len(request.requests)} items; allowed: 1 to {MAX_BATCH_REQUESTS}"
            )
        # A batch fills the engine but not its queue, which other callers share.
        most = self._limits.max_running_sequences
        places = asyncio.Semaphore(most)
        turn = asyncio.Lock()
        deadline_seconds = _deadline_seconds(context)

        room = _MessageRoom()

        async def answer(item: pb.ServeAdapterRequest) -> pb.BatchItem:
            samples = item.generate.n if item.HasField("generate") else 1
            needed = min(most, max(1, len(item.inputs) * max(1, samples)))
            async with turn:  # two that each hold half of what they need would wait for each other
                for _ in range(needed):
                    await places.acquire()
            try:
                reply = await self._whole_reply(item, request.parent, deadline_seconds)
                return room.take(pb.BatchItem(reply=reply))
            except FinetunedError as error:
                return pb.BatchItem(error=error_to_proto(error))
            finally:
                for _ in range(needed):
                    places.release()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(item)) for item in request.requests]
        return pb.BatchServeAdapterResponse(items=[task.result() for task in tasks])

    async def _whole_reply(
        self, item: pb.ServeAdapterRequest, parent: str, deadline_seconds: float | None
    ) -> pb.BatchReply:
        call = dataclasses.replace(call_from_proto(item, parent), deadline_seconds=deadline_seconds)
        if isinstance(call, ServeCall) and call.generation.delta_tokens is None:
            # Nobody sees the pieces.
            call = dataclasses.replace(
                call, generation=dataclasses.replace(call.generation, delta_tokens=MAX_DELTA_TOKENS)
            )
        reply = pb.BatchReply()
        deltas: dict[tuple[int, int], list[Delta]] = {}
        results: dict[int, pb.Result] = {}
        async with aclosing(self._serve(call)) as events:
            async for event in events:
                match event:
                    case ServedBy():
                        reply.served_by.CopyFrom(served_by_to_proto(event))
                    case Delta():
                        deltas.setdefault((event.input, event.sample), []).append(event)
                    case Done():
                        reply.done.CopyFrom(done_to_proto(event))
                    case _:
                        results[event.input] = result_to_proto(event)
        if isinstance(call, EncodeCall):
            reply.results.extend(results[i] for i in range(len(call.inputs)))
        else:
            places = itertools.product(range(len(call.inputs)), range(call.generation.samples))
            for place in places:
                parts = deltas.get(place, [])
                reply.texts.append("".join(part.text for part in parts))
                reply.tokens.append(reply_tokens_to_proto(parts))
        return reply

    async def GetServerInfo(  # noqa: N802 - the contract's name
        self,
        request: pb.GetServerInfoRequest,
        context: aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        serving, limits = self._serving, self._limits
        ready = serving.engine.ready
        if ready is None:
            raise Unavailable("the engine is starting; try again", retry_after_seconds=1.0)
        snapshot = await serving.engine.inspect()
        on_device = [a for a in snapshot.adapters if a.residency == "DEVICE"]
        memory = {
            "base": snapshot.base_bytes,
            "adapters": sum(adapter.resident_bytes for adapter in snapshot.adapters),
            "kv_cache": snapshot.kv_bytes,
        }
        return pb.GetServerInfoResponse(
            service_version=VERSION,
            replica=serving.replica,
            base=base_to_proto(serving.base, resident=True),
            resident_base_digest=ready.base_digest,
            device=ready.device,
            compute_path=ready.path,
            limits=pb.Limits(
                context_tokens=serving.context_tokens,
                max_running_sequences=limits.max_running_sequences,
                max_queued_sequences=limits.max_queued_sequences,
                max_upload_bytes=limits.max_upload_bytes,
                max_line_bytes=limits.max_line_bytes,
                max_lora_rank=limits.max_lora_rank,
                max_batch_requests=MAX_BATCH_REQUESTS,
                max_samples=MAX_SAMPLES,
                max_replies=MAX_REPLIES,
                max_constraint_bytes=MAX_CONSTRAINT_BYTES,
            ),
            methods=[method_to_proto(method) for method in methods_of(serving.base)],
            tasks=[TASK_NUMBERS[task] for task in TASKS[serving.base.family]],
            weight_formats=[common.WEIGHT_FORMAT_INT8, common.WEIGHT_FORMAT_NF4],
            load=pb.EngineLoad(
                running_sequences=snapshot.running_sequences,
                queued_sequences=snapshot.waiting_sequences,
                kv_tokens_used=snapshot.kv_tokens_used,
                kv_tokens_capacity=snapshot.kv_tokens_capacity,
                adapters_on_device=len(on_device),
            ),
            memory=[pb.MemoryUse(use=use, bytes=size) for use, size in memory.items()],
        )


def _deadline_seconds(context: aio.ServicerContext[Any, Any]) -> float | None:
    """The call's deadline by `time.monotonic`, as the engine takes it; None if the caller set none."""
    # grpc's own annotation leaves out that there may be none.
    remaining_seconds = cast("float | None", context.time_remaining())
    return None if remaining_seconds is None else time.monotonic() + remaining_seconds
