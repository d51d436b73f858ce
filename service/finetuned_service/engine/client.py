"""The engine as the RPC process sees it: requests in, streams of events out. asyncio, torch-free.

One EngineClient owns one engine process. If the process dies, what was pending fails with Unavailable
and the process is started again, with the residency that callers had set.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Self

import structlog

from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.desires import Desires
from finetuned_service.engine.launch import EngineProcess
from finetuned_service.engine.messages import (
    AdapterHandle,
    Answer,
    Cancel,
    Command,
    Encode,
    Encoded,
    Event,
    Failed,
    Inspect,
    LeaveTime,
    Pixels,
    Ready,
    Residency,
    Sampling,
    SetResidency,
    Shutdown,
    Snapshot,
    Started,
    StartFailed,
    Submit,
    Tokens,
)
from finetuned_service.engine.queue_places import QueuePlaces
from finetuned_service.engine.stream import EngineStream
from finetuned_service.errors import FinetunedError, Internal, Unavailable, from_wire

_log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_STABLE_SECONDS = 60.0
"""An engine that lived so long did not die of its start: the pauses begin again."""
_KILL_AFTER_SECONDS = 5.0


class EngineClient:
    """Talks to one engine process; all methods belong to one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        """See `start`."""
        self._config = config
        self._engine: EngineProcess | None = None
        self._ready: Ready | None = None
        self._closing = False
        self._pause_seconds = 0.0
        self.restarts = 0
        """How often the engine process was started again after its end."""
        self._ids = itertools.count(1)
        self._streams: dict[int, EngineStream] = {}
        self._tenants: dict[int, str] = {}
        """Whose each stream is."""
        self._places = QueuePlaces(
            running=config.max_running_sequences,
            queued=config.max_queued_sequences,
            share=config.max_tenant_queue_share,
        )
        self._calls: dict[int, asyncio.Future[Snapshot]] = {}
        self._desires = Desires()
        self._outbox: list[Command] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig) -> Self:
        """Start the process and wait until its base is in memory.

        Raises:
            FinetunedError: why the engine cannot serve this base.
        """
        client = cls(config)
        try:
            await client._launch()
        except BaseException:
            client._closing = True
            await client._reap(0.0)
            raise
        client._supervisor = asyncio.create_task(client._supervise())
        return client

    @property
    def ready(self) -> Ready | None:
        """What the engine said when it was ready; None while there is none."""
        return self._ready

    @property
    def alive(self) -> bool:
        """Requests can be submitted now."""
        return self._ready is not None and not self._closing

    @property
    def process_id(self) -> int | None:
        """Of the engine process, None while there is none."""
        return None if self._engine is None else self._engine.process.pid

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        adapter: AdapterHandle | None,
        sampling: Sampling,
        tenant: str = "",
        deadline_seconds: float | None = None,
        *,
        leader: int | None = None,
    ) -> EngineStream:
        """Queue a request at once. Leave the stream with `aclose` (or `async with`): it cancels what runs.

        Args:
            prompt_token_ids: at least one.
            adapter: None for the plain base.
            sampling: how tokens are chosen.
            tenant: whose request it is.
            deadline_seconds: when its answer is of no use any more, by `time.monotonic`.
            leader: the `request_id` of a stream submitted before, with the same prompt, model and tenant: where
                keys and values can be shared, this one waits until that one has them.

        Raises:
            QueueFull: if as many requests as the engine takes are on their way, or as many of this tenant as
                leave room for others.
            Unavailable: while there is no engine.
        """
        return self._queue(
            tenant,
            lambda request_id: Submit(
                request_id,
                tuple(prompt_token_ids),
                adapter,
                sampling,
                tenant,
                deadline_seconds=deadline_seconds,
                leader=leader,
            ),
        )

    async def encode(
        self,
        token_ids: Sequence[int],
        adapter: AdapterHandle | None,
        encode: Encode,
        tenant: str = "",
        pixels: Pixels | None = None,
        deadline_seconds: float | None = None,
    ) -> tuple[Started, Encoded]:
        """What an input becomes; only for bases that encode.

        Raises:
            QueueFull, Unavailable: as `submit`.
            FinetunedError: with which the request ends.
        """
        stream = self._queue(
            tenant,
            lambda request_id: Submit(
                request_id,
                tuple(token_ids),
                adapter,
                Sampling(1),
                tenant,
                encode=encode,
                pixels=pixels,
                deadline_seconds=deadline_seconds,
            ),
        )
        return await stream.encoded()

    def _queue(self, tenant: str, make: Callable[[int], Submit]) -> EngineStream:
        self._check_alive()
        self._places.take(tenant)
        request_id = next(self._ids)
        stream = EngineStream(request_id, self._leave)
        self._streams[request_id] = stream
        self._tenants[request_id] = tenant
        self._send(make(request_id))
        return stream

    async def set_residency(
        self,
        adapter: AdapterHandle,
        residency: Residency,
        *,
        pinned: bool = False,
        kept: Residency | None = None,
        lowers: bool = False,
    ) -> Snapshot:
        """Bring an adapter to a tier and answer when it is there; kept over a restart of the engine. It may be pinned at a
        lower one (`kept`). A call that only `lowers` leaves what is not in memory where it is.

        Raises:
            FinetunedError: if the adapter cannot be loaded, or there is no memory or no engine.
        """
        call = SetResidency(next(self._ids), adapter, residency, pinned, kept, lowers)
        return await self._desires.during(call, self._call(call))

    def on_pin_lost(self, tell: Callable[[str], None]) -> None:
        """Tell the digest of each adapter that was pinned and that an engine started anew refuses for good."""
        self._desires.lost = tell

    async def inspect(self, *, verify_base: bool = False) -> Snapshot:
        """What the engine holds now.

        Raises:
            Unavailable: while there is no engine.
        """
        return await self._call(Inspect(next(self._ids), verify_base=verify_base))

    @property
    def device(self) -> str:
        """Of the engine, `cpu` or `cuda`; empty while there is none."""
        return self._ready.device if self._ready else ""

    def leave_time(self, share: float) -> None:
        """Let the engine pause between steps for jobs, from now until it is told otherwise or started again."""
        if self._ready is not None:
            self._send(LeaveTime(share))

    async def shutdown(self, grace_seconds: float) -> None:
        """Let running requests finish for `grace_seconds`, fail the rest, end the process."""
        if self._closing:
            return
        self._closing = True
        wait_seconds = 0.0
        if self._ready is not None:
            self._outbox.append(Shutdown(grace_seconds))
            self._flush()
            wait_seconds = grace_seconds + _KILL_AFTER_SECONDS
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor}, timeout=wait_seconds)
            self._supervisor.cancel()
        self._stop_restoring()
        await self._reap(0.0)
        self._fail_pending(
            Unavailable("the server is stopping; try again elsewhere", retry_after_seconds=1.0)
        )

    async def _launch(self) -> None:
        self._engine = await EngineProcess.start(self._config)
        try:
            (first,) = await self._engine.receive()
        except EOFError:
            status = await self._reap(_KILL_AFTER_SECONDS)
            raise Internal(f"the engine process ended with status {status} before it was ready") from None
        match first:
            case Ready():
                self._ready = first
            case StartFailed(error=error):
                await self._reap(_KILL_AFTER_SECONDS)
                raise from_wire(error)
            case _:
                raise Internal(f"the engine began with {type(first).__name__} instead of Ready")

    async def _supervise(self) -> None:
        """Take in what the engine says; when it dies, start it again, with growing pauses."""
        while True:
            began = time.monotonic()
            await self._take_in()
            self._ready = None
            self._stop_restoring()
            status = await self._reap(_KILL_AFTER_SECONDS)
            if self._closing:
                return
            if time.monotonic() - began > _STABLE_SECONDS:
                self._pause_seconds = 0.0
            self._lengthen_pause()
            _log.error("engine_died", status=status, restart_seconds=self._pause_seconds)
            self._fail_pending(self._unavailable())
            while not await self._restart():
                self._lengthen_pause()

    async def _restart(self) -> bool:
        await asyncio.sleep(self._pause_seconds)
        self.restarts += 1
        try:
            await self._launch()
        except (FinetunedError, OSError) as error:
            # OSError: no process or descriptor left at this moment; the next try may find one.
            _log.error("engine_restart_failed", error=str(error))
            return False
        self._restoring = asyncio.create_task(self._desires.restore(self._call))
        return True

    def _stop_restoring(self) -> None:
        if self._restoring is not None:
            self._restoring.cancel()

    async def _take_in(self) -> None:
        engine = self._engine
        while engine is not None:
            try:
                for event in await engine.receive():
                    self._dispatch(event)
            except EOFError:
                return
            except Exception:  # noqa: BLE001 - an engine that cannot be understood is as good as dead
                _log.exception("engine_not_understood")
                return

    def _dispatch(self, event: Event) -> None:
        match event:
            case Started() | Tokens() | Encoded() | Failed():
                stream = self._streams.get(event.request_id)
                if stream is not None and stream.feed(event):
                    self._drop(event.request_id)
            case Answer(call_id=call_id, snapshot=snapshot, error=error):
                future = self._calls.pop(call_id, None)
                if future is None or future.done():
                    if error is not None:
                        _log.warning("engine_residency_refused", reason=error["reason"])
                    return
                if snapshot is not None:
                    future.set_result(snapshot)
                elif error is not None:
                    future.set_exception(from_wire(error))
            case _:
                _log.error("engine_event_unexpected", kind=type(event).__name__)

    async def _call(self, command: SetResidency | Inspect) -> Snapshot:
        self._check_alive()
        future: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._calls[command.call_id] = future
        self._send(command)
        try:
            return await future
        finally:
            self._calls.pop(command.call_id, None)

    def _leave(self, request_id: int) -> None:
        if self._drop(request_id) and self._ready is not None:
            self._send(Cancel(request_id))

    def _drop(self, request_id: int) -> bool:
        if self._streams.pop(request_id, None) is None:
            return False
        self._places.give_back(self._tenants.pop(request_id))
        return True

    def _send(self, command: Command) -> None:
        """With all else that is sent in this turn of the event loop, as one message."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(command)

    def _flush(self) -> None:
        commands, self._outbox = self._outbox, []
        if commands and self._engine is not None and self._ready is not None:
            self._engine.send(commands)

    def _check_alive(self) -> None:
        if not self.alive:
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            "the engine is restarting; try again", retry_after_seconds=max(self._pause_seconds, 1.0)
        )

    def _lengthen_pause(self) -> None:
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)

    def _fail_pending(self, error: Unavailable) -> None:
        streams = list(self._streams.values())
        for stream in streams:
            self._drop(stream.request_id)
            stream.feed(Failed(stream.request_id, error.to_wire()))
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(from_wire(error.to_wire()))

    async def _reap(self, timeout_seconds: float) -> int | None:
        engine, self._engine = self._engine, None
        self._ready = None
        return None if engine is None else await engine.wait(timeout_seconds)
