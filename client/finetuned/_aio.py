"""Runs calls over an asyncio channel; `_transport.py` is its blocking twin.

The two differ in little but `await`: what to send, to repeat, to wait for and to give up is decided
in `_calls/`, `_retry.py` and `_resume.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeVar, final

import grpc
import grpc.aio

from finetuned._calls.call import Call, Kind, Page, SendCall, StreamCall
from finetuned._channel import credentials, metadata, options, serialize
from finetuned._names import Names
from finetuned._resume import StreamProgress
from finetuned._retry import Attempts, Deadlines, RetryPolicy
from finetuned._transport import error_of, open_channel
from finetuned.errors import NotFound
from finetuned.settings import Settings

T = TypeVar("T")


@final
@dataclass(slots=True)
class LazyChannel:
    """A channel that is opened by its first call, because it belongs to the event loop of that call."""

    settings: Settings
    tls: grpc.ChannelCredentials | None
    _opened: grpc.aio.Channel | None = None
    _for_sending: grpc.Channel | None = None

    def get(self) -> grpc.aio.Channel:
        if self._opened is None:
            target, arguments = self.settings.target, options(self.settings)
            if self.tls is None:
                self._opened = grpc.aio.insecure_channel(target, options=arguments)
            else:
                self._opened = grpc.aio.secure_channel(target, self.tls, options=arguments)
        return self._opened

    def for_sending(self) -> grpc.Channel:
        """For streams of requests.

        When a server ends such a call early, grpc.aio reports the failed write (INTERNAL, "Internal error
        from Core") and loses the server's own status with the line or the offset at fault. The blocking
        stack keeps it, and reads the file outside the event loop besides.
        """
        if self._for_sending is None:
            self._for_sending = open_channel(self.settings)
        return self._for_sending

    async def close(self) -> None:
        if self._for_sending is not None:
            self._for_sending.close()
        if self._opened is not None:
            await self._opened.close(None)


@final
@dataclass(frozen=True, slots=True)
class AsyncTransport:
    channel: LazyChannel
    names: Names
    metadata: tuple[tuple[str, str], ...]
    deadlines: Deadlines
    retry: RetryPolicy

    @classmethod
    def open(cls, settings: Settings, deadlines: Deadlines, retry: RetryPolicy) -> AsyncTransport:
        channel = LazyChannel(settings, credentials(settings))
        return cls(channel, Names(settings.tenant), metadata(settings), deadlines, retry)

    async def call(self, call: Call[T]) -> T:
        attempts = Attempts.of_call(call, self.retry, self.deadlines)
        rpc = self.channel.get().unary_unary(call.method.path, serialize, call.method.response.FromString)
        while True:
            try:
                answer = await rpc(call.request, timeout=attempts.remaining_seconds(), metadata=self.metadata)
            except grpc.RpcError as failed:
                await asyncio.sleep(attempts.delay_seconds(error_of(failed)))
            else:
                return call.parse(answer)

    async def pages(self, call: Call[Page[T]]) -> AsyncGenerator[T]:
        following: Call[Page[T]] | None = call
        while following is not None:
            page = await self.call(following)
            for item in page.items:
                yield item
            following = call.next_page(page)

    async def stream(self, call: StreamCall[T]) -> AsyncGenerator[T]:
        progress = StreamProgress(call, self.retry, self.deadlines)
        open_stream = self.channel.get().unary_stream(
            call.method.path, serialize, call.method.response.FromString
        )
        while progress.request is not None:
            answers = open_stream(
                progress.request, timeout=progress.timeout_seconds(), metadata=self.metadata
            )
            try:
                async for answer in answers:
                    yield progress.received(call.parse(answer))
                progress.ended()
            except grpc.RpcError as failed:
                await asyncio.sleep(progress.failed(error_of(failed)))
            finally:
                answers.cancel()

    async def send(self, call: SendCall[T]) -> T:
        attempts = Attempts(self.retry, self.deadlines.seconds(Kind.TRANSFER))
        rpc = self.channel.for_sending().stream_unary(
            call.method.path, serialize, call.method.response.FromString
        )
        offset = 0
        while True:
            try:
                answer = await _result(
                    rpc.future(
                        call.messages(offset), timeout=attempts.remaining_seconds(), metadata=self.metadata
                    )
                )
            except grpc.RpcError as failed:
                await asyncio.sleep(attempts.delay_seconds(error_of(failed)))
                offset = attempts.offset_after(offset, await self._committed_bytes(call))
            else:
                return call.parse(answer)

    async def _committed_bytes(self, call: SendCall[Any]) -> int:
        if call.committed_bytes is None:
            return 0
        try:
            return await self.call(call.committed_bytes)
        except NotFound:
            return 0  # it broke before the service knew the upload, or after it was complete

    def within(self, seconds: float) -> AsyncTransport:
        return dataclasses.replace(self, deadlines=Deadlines.of(seconds))


async def _result(running: grpc.Future[T]) -> T:
    """The result of a call of the blocking stack; cancelling the task cancels the call."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: grpc.Future[T]) -> None:
        loop.call_soon_threadsafe(done.set)

    running.add_done_callback(wake)
    try:
        await done.wait()
    except asyncio.CancelledError:
        running.cancel()
        raise
    return running.result()
