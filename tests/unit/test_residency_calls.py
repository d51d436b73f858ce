"""Calls that bring adapters to a tier while others come for the same one; what a new engine is told of them."""

from __future__ import annotations

import asyncio

import pytest
from finetuned_service.engine.desires import Desires
from finetuned_service.engine.messages import AdapterHandle, Residency, SetResidency, Snapshot
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.engine.residency_calls import ResidencyCalls
from finetuned_service.errors import Unavailable
from tiny_residency import FakeMemory, ManualLoader

HANDLE = AdapterHandle("a", "10")
SNAPSHOT = Snapshot(0, 0, 0, 0, 0, 0, (), "")


class World:
    """A manager, its calls, and a loader that is told when."""

    def __init__(self):
        self.loader = ManualLoader()
        self.manager = ResidencyManager(FakeMemory(30), self.loader, host_budget_bytes=100)
        self.calls = ResidencyCalls(self.manager, lambda: SNAPSHOT)
        self.answered = []

    def ask(self, call_id, residency, *, pinned=False, kept=None):
        self._note(self.calls.take(SetResidency(call_id, HANDLE, residency, pinned, kept)))

    def finish_loads(self):
        finish = self.manager.finish

        def told(loaded):
            finish(loaded)
            self._note(self.calls.loaded(loaded))

        self.manager.finish = told
        while self.loader.waiting:
            self.loader.run(self.manager)
        self.manager.finish = finish

    def _note(self, answers):
        self.answered += [(answer.call_id, answer.error is None) for answer in answers]

    @property
    def state(self):
        """Tier and pin, None if it is nowhere."""
        return next(((one.residency, one.pinned) for one in self.manager.snapshot()), None)


@pytest.fixture
def world():
    return World()


def test_an_unload_is_not_undone_by_a_load_that_began_before(world):
    world.ask(1, Residency.DEVICE, pinned=True)
    world.ask(2, Residency.STORED)
    assert world.answered == [(2, True)]
    world.finish_loads()
    assert world.answered == [(2, True), (1, True)]
    assert world.state is None


def test_a_pin_that_a_later_call_gave_up_does_not_come_back(world):
    world.ask(1, Residency.DEVICE, pinned=True)
    world.ask(2, Residency.HOST)
    world.finish_loads()
    assert sorted(world.answered) == [(1, True), (2, True)]
    assert world.state == (Residency.DEVICE, False)


def test_a_load_after_an_unload_is_done(world):
    world.ask(1, Residency.DEVICE)
    world.ask(2, Residency.STORED)
    world.ask(3, Residency.DEVICE, pinned=True)
    world.finish_loads()
    assert sorted(world.answered) == [(1, True), (2, True), (3, True)]
    assert world.state == (Residency.DEVICE, True)


def call(call_id, residency, **others):
    return SetResidency(call_id, HANDLE, residency, **others)


async def test_a_new_engine_is_not_told_of_a_load_that_was_undone_before_it_ended():
    desires, gate = Desires(), asyncio.Event()

    async def slow():
        await gate.wait()
        return SNAPSHOT

    async def fast():
        return SNAPSHOT

    load = asyncio.create_task(desires.during(call(1, Residency.DEVICE, pinned=True), slow()))
    await asyncio.sleep(0)
    await desires.during(call(2, Residency.STORED), fast())
    gate.set()
    await load
    assert list(desires) == []


async def test_a_new_engine_is_told_of_a_load_whose_caller_left_and_of_none_that_was_refused():
    desires = Desires()

    async def never():
        await asyncio.Event().wait()
        return SNAPSHOT

    async def refused():
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        await desires.during(call(1, Residency.DEVICE), refused())
    assert list(desires) == []
    load = asyncio.create_task(desires.during(call(2, Residency.DEVICE, pinned=True), never()))
    await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert list(desires) == [call(2, Residency.DEVICE, pinned=True)]
