"""Calls that bring adapters to a tier while others come for the same one; what a new engine is told of them."""

from __future__ import annotations

import asyncio

import pytest
from finetuned_service.engine import desires as restoring
from finetuned_service.engine.desires import Desires
from finetuned_service.engine.messages import AdapterHandle, Residency, SetResidency, Snapshot
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.engine.residency_calls import ResidencyCalls
from finetuned_service.errors import InvalidAdapterFiles, ResourceExhausted, Unavailable
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

    def ask(self, call_id, residency, *, pinned=False, kept=None, lowers=False):
        self._note(self.calls.take(SetResidency(call_id, HANDLE, residency, pinned, kept, lowers)))

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


def test_a_load_that_follows_an_unload_is_not_undone_by_the_load_before_it(world):
    world.ask(1, Residency.DEVICE)
    world.loader.run(world.manager, 1)
    world.ask(2, Residency.DEVICE)  # being filled
    world.ask(3, Residency.STORED)
    world.ask(4, Residency.HOST, pinned=True)
    assert world.answered == [(3, True), (4, True)]
    world.finish_loads()
    assert sorted(world.answered) == [(1, True), (2, True), (3, True), (4, True)]
    assert world.state == (Residency.HOST, True)


def test_a_call_that_only_lowers_keeps_nothing_that_an_unload_before_it_frees(world):
    world.ask(1, Residency.DEVICE)
    world.ask(2, Residency.STORED)
    world.ask(3, Residency.HOST, lowers=True)
    world.finish_loads()
    assert sorted(world.answered) == [(1, True), (2, True), (3, True)]
    assert world.state is None


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


async def test_a_new_engine_is_told_of_a_load_that_followed_an_unload_whenever_the_load_before_it_ends():
    desires, gate = Desires(), asyncio.Event()

    async def slow():
        await gate.wait()
        return SNAPSHOT

    async def fast():
        return SNAPSHOT

    load = asyncio.create_task(desires.during(call(1, Residency.DEVICE), slow()))
    await asyncio.sleep(0)
    await desires.during(call(2, Residency.STORED), fast())
    again = call(3, Residency.HOST, pinned=True)
    await desires.during(again, fast())
    gate.set()
    await load
    assert list(desires) == [again]


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


async def test_what_is_wanted_no_more_is_not_wanted_of_the_next_engine_either():
    """An adapter that is deleted while there is no engine to tell it."""
    desires = Desires()

    async def answer():
        return SNAPSHOT

    async def absent():
        raise Unavailable("the engine is being started")

    await desires.during(call(1, Residency.DEVICE, pinned=True), answer())
    with pytest.raises(Unavailable):
        await desires.during(call(2, Residency.STORED), absent())
    assert list(desires) == []


async def test_a_pin_that_is_given_up_while_there_is_no_engine_is_none_in_the_next_one():
    desires = Desires()

    async def answer():
        return SNAPSHOT

    async def absent():
        raise Unavailable("the engine is being started")

    await desires.during(call(1, Residency.DEVICE, pinned=True), answer())
    with pytest.raises(Unavailable):
        await desires.during(call(2, Residency.HOST, lowers=True), absent())
    assert list(desires) == [call(2, Residency.HOST)]


async def test_a_call_that_only_lowers_makes_nobody_want_what_was_not_wanted():
    desires = Desires()

    async def answer():
        return SNAPSHOT

    await desires.during(call(1, Residency.HOST, lowers=True), answer())
    assert list(desires) == []
    await desires.during(call(2, Residency.DEVICE), answer())
    await desires.during(call(3, Residency.HOST, lowers=True), answer())
    assert list(desires) == [call(3, Residency.HOST)]


class NewEngine:
    """Takes what it is told; refuses with what is left of an adapter's refusals."""

    def __init__(self, **refusals):
        self.refusals = {digest: list(errors) for digest, errors in refusals.items()}
        self.told = []

    async def place(self, desire):
        self.told.append(desire.adapter.digest)
        if self.refusals.get(desire.adapter.digest):
            raise self.refusals[desire.adapter.digest].pop(0)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(restoring, "_FIRST_PAUSE_SECONDS", 0.0)


async def wanted(*asked):
    """Desires for adapters, pinned if their name is upper case, in the order in which they are asked for."""
    desires = Desires()

    async def answer():
        return SNAPSHOT

    for number, name in enumerate(asked):
        handle = AdapterHandle(name, "10")
        await desires.during(SetResidency(number, handle, Residency.DEVICE, pinned=name.isupper()), answer())
    return desires


@pytest.mark.usefixtures("no_pauses")
async def test_a_new_engine_is_told_first_of_what_is_pinned_until_it_has_room_for_it():
    desires = await wanted("a", "B", "c", "D", "a")
    full = ResourceExhausted("running sequences use the memory")
    engine = NewEngine(B=[full, Unavailable("its files cannot be read now")])
    await desires.restore(engine.place)
    assert engine.told == ["B", "D", "B", "B", "c", "a"]
    assert [desire.adapter.digest for desire in desires] == ["B", "c", "D", "a"]


@pytest.mark.usefixtures("no_pauses")
async def test_what_a_new_engine_refuses_for_good_is_wanted_no_more():
    desires, lost = await wanted("a", "B"), []
    desires.lost = lost.append
    engine = NewEngine(a=[ResourceExhausted("full")], B=[InvalidAdapterFiles("damaged")])
    await desires.restore(engine.place)
    assert engine.told == ["B", "a"]
    assert list(desires) == []
    assert lost == ["B"]  # what is pinned is counted


@pytest.mark.usefixtures("no_pauses")
async def test_a_pin_that_is_given_up_meanwhile_is_not_tried_again():
    desires = await wanted("B")

    async def refuse(desire):
        async def answer():
            return SNAPSHOT

        await desires.during(SetResidency(9, desire.adapter, Residency.STORED), answer())
        raise ResourceExhausted("full")

    await desires.restore(refuse)
    assert list(desires) == []


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("refused", [False, True])
async def test_a_new_engine_is_not_told_again_of_what_a_call_under_way_tells_it(refused):
    """The old word would come after the new one; it is said only if the engine refuses that."""
    desires, engine, gate = await wanted("A", "b"), NewEngine(), asyncio.Event()

    async def answer():
        await gate.wait()
        if refused:
            raise ResourceExhausted("full")
        return SNAPSHOT

    asked = [
        SetResidency(number, AdapterHandle(name, "10"), Residency.HOST, pinned=True)
        for number, name in enumerate(("A", "b"), start=9)
    ]
    calls = [asyncio.create_task(desires.during(one, answer())) for one in asked]
    await asyncio.sleep(0)
    restoring = asyncio.create_task(desires.restore(engine.place))
    for _ in range(8):
        await asyncio.sleep(0)
    assert engine.told == []
    gate.set()
    await asyncio.gather(*calls, return_exceptions=True)
    await restoring
    assert engine.told == (["A", "b"] if refused else [])
    assert [desire.pinned for desire in desires] == ([True, False] if refused else [True, True])
