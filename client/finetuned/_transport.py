"""Runs calls over a blocking channel; `_aio.py` is its asyncio twin."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import grpc

from finetuned._calls.call import Call, Kind, Page, SendCall, StreamCall
from finetuned._channel import credentials, metadata, options, serialize
from finetuned._names import Names
from finetuned._resume import StreamProgress
from finetuned._retry import Attempts, Deadlines, RetryPolicy
from finetuned._status import FailedCall, from_call
from finetuned.errors import FinetunedError, NotFound
from finetuned.settings import Settings

T = TypeVar("T")


def error_of(failed: grpc.RpcError) -> FinetunedError:
    # grpc's own annotations leave out that the errors of calls are calls themselves.
    return from_call(cast("FailedCall", cast("object", failed)))


def open_channel(settings: Settings) -> grpc.Channel:
    tls = credentials(settings)
    if tls is None:
        return grpc.insecure_channel(settings.target, options=options(settings))
    return grpc.secure_channel(settings.target, tls, options=options(settings))


@final
@dataclass(frozen=True, slots=True)
class Transport:
    channel: grpc.Channel
    names: Names
    metadata: tuple[tuple[str, str], ...]
    deadlines: Deadlines
    retry: RetryPolicy

    @classmethod
    def open(cls, settings: Settings, deadlines: Deadlines, retry: RetryPolicy) -> Transport:
        sent = metadata(settings)  # before the channel: what it refuses leaves none open
        return cls(open_channel(settings), Names(settings.tenant), sent, deadlines, retry)

    def call(self, call: Call[T]) -> T:
        attempts = Attempts.of_call(call, self.retry, self.deadlines)
        rpc = self.channel.unary_unary(call.method.path, serialize, call.method.response.FromString)
        while True:
            try:
                answer = rpc(call.request, timeout=attempts.remaining_seconds(), metadata=self.metadata)
            except grpc.RpcError as failed:
                time.sleep(attempts.delay_seconds(error_of(failed)))
            else:
                return call.parse(answer)

    def pages(self, call: Call[Page[T]]) -> Generator[T]:
        following: Call[Page[T]] | None = call
        while following is not None:
            page = self.call(following)
            yield from page.items
            following = call.next_page(page)

    def stream(self, call: StreamCall[T]) -> Generator[T]:
        progress = StreamProgress(call, self.retry, self.deadlines)
        open_stream = self.channel.unary_stream(call.method.path, serialize, call.method.response.FromString)
        while progress.request is not None:
            answers = open_stream(
                progress.request, timeout=progress.timeout_seconds(), metadata=self.metadata
            )
            try:
                for answer in answers:
                    yield progress.received(call.parse(answer))
                progress.ended()
            except grpc.RpcError as failed:
                time.sleep(progress.failed(error_of(failed)))
            finally:
                answers.cancel()

    def send(self, call: SendCall[T]) -> T:
        attempts = Attempts(self.retry, self.deadlines.seconds(Kind.TRANSFER))
        rpc = self.channel.stream_unary(call.method.path, serialize, call.method.response.FromString)
        offset = 0
        while True:
            try:
                answer = rpc(
                    call.messages(offset), timeout=attempts.remaining_seconds(), metadata=self.metadata
                )
            except grpc.RpcError as failed:
                time.sleep(attempts.delay_seconds(error_of(failed)))
                offset = attempts.offset_after(offset, self._committed_bytes(call))
            else:
                return call.parse(answer)

    def _committed_bytes(self, call: SendCall[Any]) -> int:
        if call.committed_bytes is None:
            return 0
        try:
            return self.call(call.committed_bytes)
        except NotFound:
            return 0  # it broke before the service knew the upload, or after it was complete

    def within(self, seconds: float) -> Transport:
        return dataclasses.replace(self, deadlines=Deadlines.of(seconds))
