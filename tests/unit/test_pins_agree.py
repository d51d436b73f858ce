"""Holders, wishes for the next engine, and the engine say the same of every pin, whatever it refuses meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from finetuned_service.engine.desires import Desires
from finetuned_service.engine.messages import AdapterHandle, Residency, SetResidency, Snapshot
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.engine.residency_calls import ResidencyCalls
from finetuned_service.errors import ResourceExhausted, Unavailable, from_wire
from finetuned_service.serving import residents as serving
from finetuned_service.serving.pin_shares import PinShares
from finetuned_service.serving.residents import Residents
from tiny_residency import FakeMemory, ManualLoader

HOST, DEVICE, STORED = Residency.HOST, Residency.DEVICE, Residency.STORED
X = AdapterHandle("x", "10")


class Engine:
    """The engine's own residency behind a pipe that is emptied when a test says so."""

    def __init__(self, host_bytes):
        self.loader, self.desires = ManualLoader(), Desires()
        self.manager = ResidencyManager(FakeMemory(100), self.loader, host_bytes)
        self.calls = ResidencyCalls(self.manager, lambda: Snapshot(0, 0, 0, 0, 0, 0))
        self.alive = True
        self._ids = itertools.count()
        self._pipe: list[SetResidency] = []
        self._answers: dict[int, asyncio.Future[Snapshot]] = {}

    async def set_residency(self, handle, tier, *, pinned, kept, lowers):
        call = SetResidency(next(self._ids), handle, tier, pinned, kept, lowers)
        return await self.desires.during(call, self._call(call))

    async def _call(self, call):
        if not self.alive:
            raise Unavailable("the engine is being started")
        self._pipe.append(call)
        self._answers[call.call_id] = asyncio.get_running_loop().create_future()
        return await self._answers[call.call_id]

    def take(self):
        """One command."""
        self.manager.begin_pass()
        self._tell(self.calls.take(self._pipe.pop(0)))

    async def settle(self):
        """All commands and loads, until there are none."""
        for _ in range(8):
            await asyncio.sleep(0)
        while self._pipe or self.loader.waiting:
            if self._pipe:
                self.take()
            else:
                self.manager.begin_pass()
                self.loader.run(SimpleNamespace(finish=self._finish), 1)
            for _ in range(8):
                await asyncio.sleep(0)

    def end(self):
        self.alive = False
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable("the engine has ended"))

    def _finish(self, loaded):
        self.manager.finish(loaded)
        self._tell(self.calls.loaded(loaded))

    def _tell(self, answers):
        for answer in answers:
            future = self._answers[answer.call_id]
            if answer.snapshot is None:
                future.set_exception(from_wire(answer.error))
            else:
                future.set_result(answer.snapshot)

    def pinned(self, digest):
        return next((one.pinned for one in self.manager.snapshot() if one.digest == digest), False)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(serving, "served_bytes", lambda *_: 10)

    def make(host_bytes):
        engine = Engine(host_bytes)
        registry = SimpleNamespace(unnamed_by=lambda *_: set(), directory_of=lambda _: "10")
        return engine, Residents(engine, registry, None, PinShares({HOST: 100, DEVICE: 100}, 1.0))

    return make


def version(digest, tenant="one"):
    return SimpleNamespace(tenant=tenant, manifest=SimpleNamespace(digest=digest, parameters=1))


async def started(*calls):
    tasks = [asyncio.create_task(call) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_refused_pin_is_not_left_with_a_call_that_was_sent_meanwhile(served):
    engine, residents = served(host_bytes=10)
    engine.manager.try_hold(X)  # being read for a request, so that there is no room for another
    pin, load = await started(
        residents.load(version("a"), DEVICE, pin=True), residents.load(version("a"), HOST, pin=False)
    )
    engine.take()
    engine.loader.run(engine.manager)
    await engine.settle()
    with pytest.raises(ResourceExhausted):
        await pin
    await load
    assert residents.holders.pinned("a") is STORED
    assert not engine.pinned("a")
    assert [desire.pinned for desire in engine.desires] == [False]


async def test_a_pin_that_an_engine_refused_as_it_ended_is_not_wanted_of_the_next(served):
    """The other tenant's pin is, where that has it."""
    engine, residents = served(host_bytes=100)
    low, high = await started(
        residents.load(version("a", "two"), HOST, pin=True), residents.load(version("a"), DEVICE, pin=True)
    )
    engine.take()
    engine.take()
    engine.loader.run(SimpleNamespace(finish=engine._finish), 1)  # read; being filled
    await low
    engine.end()
    with pytest.raises(Unavailable):
        await high
    assert residents.holders.pinned("a") is HOST
    assert [(desire.pinned, desire.kept) for desire in engine.desires] == [(True, HOST)]


async def test_an_unload_that_is_refused_leaves_pinned_what_others_have_pinned(served):
    engine, residents = served(host_bytes=10)
    others, pin = await started(
        residents.load(version("a", "two"), HOST, pin=True), residents.load(version("a"), DEVICE, pin=True)
    )
    await engine.settle()
    await asyncio.gather(others, pin)
    engine.manager.try_hold(X)  # takes the host copy's memory
    (unload,) = await started(residents.unload(version("a")))
    engine.take()
    await engine.settle()
    with pytest.raises(ResourceExhausted):
        await unload
    assert residents.holders.pinned("a") is HOST
    assert engine.pinned("a")
    assert [(desire.pinned, desire.kept) for desire in engine.desires] == [(True, HOST)]
