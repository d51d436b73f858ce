"""Tiers, budgets, evictions and pins, on a memory of integers and a loader that is told when."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.messages import AdapterHandle, Residency
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.errors import InvalidAdapterFiles, ResourceExhausted, Unavailable
from hypothesis import given
from hypothesis import strategies as st
from tiny_residency import FakeMemory, ManualLoader

HOST, DEVICE, STORED = Residency.HOST, Residency.DEVICE, Residency.STORED
READY, LOADING, NO_MEMORY = Readiness.READY, Readiness.LOADING, Readiness.NO_MEMORY


class World:
    def __init__(self, host=100, device=30, **memory):
        self.memory, self.loader = FakeMemory(device, **memory), ManualLoader()
        self.manager = ResidencyManager(self.memory, self.loader, host)

    def hold(self, handle):
        """Ask until it is ready, as the scheduler does."""
        while (readiness := self.ask(handle)) is LOADING:
            self.loader.run(self.manager)
        return readiness

    def ask(self, handle):
        self.manager.begin_pass()
        return self.manager.try_hold(handle)

    def load(self, handle):
        assert self.hold(handle) is READY
        self.manager.release(handle)

    def tiers(self):
        return {a.digest: a.residency for a in self.manager.snapshot()}


def handle(digest, size=10):
    return AdapterHandle(digest, str(size))


A, B, C, D = (handle(digest) for digest in "abcd")


@pytest.fixture
def world():
    return World()


def test_what_is_read_in_the_serving_layout_is_ready_without_a_second_load():
    world = World(fills_at_once=True)
    assert world.ask(A) is LOADING
    world.loader.run(world.manager)
    assert world.ask(A) is READY
    assert world.loader.waiting == []
    assert (world.manager.loads, world.tiers()) == (1, {"a": DEVICE})
    world.manager.release(A)
    assert world.manager.set_residency(B, DEVICE, pinned=True) is LOADING
    world.loader.run(world.manager)
    assert world.manager.set_residency(B, DEVICE, pinned=True) is READY
    assert world.manager.set_residency(A, STORED, pinned=False) is READY
    assert world.tiers() == {"b": DEVICE}


def test_a_cold_adapter_is_read_then_filled_then_ready(world):
    assert world.manager.try_hold(A) is LOADING
    assert world.tiers() == {}
    world.loader.run(world.manager)
    assert world.tiers() == {"a": HOST}
    assert world.manager.try_hold(A) is LOADING
    world.loader.run(world.manager)
    assert world.tiers() == {"a": DEVICE}
    assert world.manager.try_hold(A) is READY
    assert (world.manager.loads, world.manager.load_seconds) == (1, 1.0)
    assert world.manager.modules_of(A) == 7


def test_many_that_wait_for_it_load_it_once(world):
    for _ in range(5):
        assert world.manager.try_hold(A) is LOADING
    assert len(world.loader.waiting) == 1


def test_the_least_recently_used_makes_room(world):
    for one in (A, B, C, A, D):
        world.load(one)
    assert world.tiers() == {"a": DEVICE, "b": HOST, "c": DEVICE, "d": DEVICE}
    assert world.manager.evictions == 1


def test_what_came_back_from_host_is_not_read_again(world):
    for one in (A, B, C, D):
        world.load(one)
    assert world.manager.try_hold(A) is LOADING
    world.loader.run(world.manager)
    assert world.manager.try_hold(A) is READY


@pytest.mark.parametrize(("host", "device"), [(20, 100), (100, 20), (20, 20)])
def test_more_waiting_than_fit_take_turns_and_none_is_loaded_in_vain(host, device):
    world = World(host=host, device=device)
    waiting = [handle(f"w{i}") for i in range(10)]
    reads = 0
    for _ in range(100):
        world.manager.begin_pass()
        served = [one for one in waiting if world.manager.try_hold(one) is READY]
        for one in served:
            waiting.remove(one)
            world.manager.release(one)
        reads += len(world.loader.waiting)
        world.loader.run(world.manager)
    assert waiting == []
    assert reads == 10 + 10


def test_those_who_wait_do_not_take_the_memory_of_those_before_them():
    world = World(host=20, device=20)
    for one in (A, B):
        assert world.hold(one) is READY
    waiting = [handle(f"w{i}") for i in range(6)]
    reads = 0
    for _ in range(20):
        world.manager.begin_pass()
        assert READY not in [world.manager.try_hold(one) for one in waiting]
        reads += len(world.loader.waiting)
        world.loader.run(world.manager)
    assert reads == 2
    world.manager.release(A)
    assert world.hold(waiting[0]) is READY


def test_held_ones_stay_and_the_request_waits(world):
    for one in (A, B, C):
        assert world.hold(one) is READY
    assert world.hold(D) is NO_MEMORY
    assert {d: t for d, t in world.tiers().items() if t is DEVICE}.keys() == {"a", "b", "c"}
    world.manager.release(B)
    assert world.hold(D) is READY
    assert world.tiers()["b"] is HOST


def test_an_adapter_being_filled_is_not_evicted_for_another(world):
    big = handle("big", 30)
    world.manager.try_hold(A)
    world.loader.run(world.manager)
    assert world.manager.try_hold(A) is LOADING
    world.manager.try_hold(big)
    world.loader.run(world.manager, 1)
    assert world.tiers()["a"] is DEVICE


def test_what_can_never_fit_is_refused_and_leaves_nothing(world):
    with pytest.raises(ResourceExhausted, match="101 bytes of host memory"):
        world.manager.try_hold(handle("x", 101))
    world.manager.try_hold(handle("y", 31))
    world.loader.run(world.manager)
    with pytest.raises(ResourceExhausted, match="even alone"):
        world.manager.try_hold(handle("y", 31))
    assert world.tiers().get("x") is None


def test_pins_survive_and_a_full_house_of_pins_is_said(world):
    for one in (A, B, C):
        world.load(one)
        assert world.manager.set_residency(one, DEVICE, pinned=True) is READY
    world.ask(D)
    world.loader.run(world.manager)
    with pytest.raises(ResourceExhausted, match="pinned"):
        world.ask(D)
    world.manager.set_residency(A, DEVICE, pinned=False)
    assert world.hold(D) is READY
    assert world.tiers()["a"] is HOST


def test_host_budget_evicts_copies_but_not_what_serves():
    world = World(host=20, device=30)
    for one in (A, B, C):
        assert world.hold(one) is READY
    assert world.tiers() == {"a": DEVICE, "b": DEVICE, "c": DEVICE}
    assert sum(a.resident_bytes for a in world.manager.snapshot()) == 20 + 30


def test_a_pinned_host_copy_stays(world):
    world.manager.set_residency(A, HOST, pinned=True)
    world.loader.run(world.manager)
    for size in (60, 50, 40):
        world.manager.begin_pass()
        world.manager.advance(handle(f"other{size}", size), HOST)
        world.loader.run(world.manager)
    assert world.tiers()["a"] is HOST


def test_what_is_pinned_below_the_tier_it_is_in_may_fall_as_far(world):
    world.load(A)
    assert world.manager.set_residency(A, DEVICE, pinned=True, kept=HOST) is READY
    assert world.tiers()["a"] is DEVICE
    for one in (B, C, D):
        assert world.hold(one) is READY
    assert world.tiers()["a"] is HOST


def test_stored_waits_for_the_last_running_sequence(world):
    assert world.hold(A) is READY
    assert world.manager.set_residency(A, STORED, pinned=False) is READY
    assert world.tiers() == {"a": DEVICE}
    world.manager.release(A)
    assert world.tiers() == {}
    assert world.memory.places == []


def test_host_frees_the_device_and_keeps_the_copy():
    world = World(host=10, device=30)
    world.load(A)
    world.load(B)
    assert world.manager.set_residency(A, HOST, pinned=False) is LOADING
    assert world.tiers()["a"] is DEVICE
    world.loader.run(world.manager)
    assert world.tiers()["a"] is HOST


def test_what_only_lowers_brings_nothing_into_memory(world):
    assert world.manager.set_residency(A, HOST, pinned=False, lowers=True) is READY
    assert (world.loader.waiting, world.manager.snapshot()) == ([], ())
    world.load(A)
    assert world.manager.set_residency(A, HOST, pinned=False, lowers=True) is READY
    assert world.tiers() == {"a": HOST}


def test_a_call_for_host_does_not_wait_for_the_place_that_it_gives_up(world):
    """Both asked again at each load's end, they once undid and began each other's work forever."""
    world.load(A)
    world.manager.set_residency(A, HOST, pinned=False)
    assert world.manager.set_residency(A, DEVICE, pinned=False) is LOADING
    assert world.manager.set_residency(A, HOST, pinned=False) is READY
    world.loader.run(world.manager)
    assert world.tiers() == {"a": HOST}


def test_stored_while_it_loads_forgets_it_when_loaded(world):
    world.manager.try_hold(A)
    world.manager.set_residency(A, STORED, pinned=False)
    world.loader.run(world.manager)
    assert world.tiers() == {}


def test_a_failed_load_leaves_nothing_and_may_be_tried_again(world):
    world.memory.unreadable["a"] = InvalidAdapterFiles("bad")
    world.manager.set_residency(A, DEVICE, pinned=True)
    world.loader.run(world.manager)
    assert world.tiers() == {}
    del world.memory.unreadable["a"]
    assert world.hold(A) is READY


def test_files_that_cannot_be_reached_are_refused_at_once(world):
    with pytest.raises(Unavailable):
        world.manager.try_hold(AdapterHandle("a", "gone"))
    with pytest.raises(Unavailable):
        world.manager.set_residency(AdapterHandle("a", "gone"), DEVICE, pinned=True)
    assert world.manager.snapshot() == ()


class Play:
    """A world, whoever holds what in it, and one move of each kind."""

    def __init__(self):
        self.world = World(host=60, device=40)
        self.held = []

    def hold(self, one, _tier, _pinned):
        if self.world.manager.try_hold(one) is READY:
            self.held.append((one, self.world.manager.place_of(one)))

    def release(self, one, _tier, _pinned):
        mine = [entry for entry in self.held if entry[0] == one]
        if mine:
            self.held.remove(mine[0])
            self.world.manager.release(one)

    def set_residency(self, one, tier, pinned):
        pinned = pinned and tier is not STORED
        if self.world.manager.set_residency(one, tier, pinned=pinned) is NO_MEMORY:
            self.world.manager.unpin(one)

    def begin_pass(self, _one, _tier, _pinned):
        self.world.manager.begin_pass()

    def load(self, _one, _tier, _pinned):
        self.world.loader.run(self.world.manager, min(1, len(self.world.loader.waiting)))

    def check(self):
        manager, places = self.world.manager, self.world.memory.places
        assert all(manager.place_of(one) is place and place in places for one, place in self.held)
        entries = manager.snapshot()
        holders = [one.digest for one, _ in self.held]
        assert {a.digest: a.running_sequences for a in entries if a.running_sequences} == Counter(holders)
        placed_bytes = sum(place.size_bytes for place in places)
        assert sum(a.resident_bytes for a in entries) - placed_bytes <= 60

    def clear(self, handles):
        for one, _ in self.held:
            self.world.manager.release(one)
        self.world.loader.run(self.world.manager)
        for one in handles:
            self.world.manager.set_residency(one, STORED, pinned=False)


HANDLES = [handle(f"n{size}", size) for size in (5, 10, 15, 20, 35)]
MOVES = st.tuples(
    st.sampled_from([Play.hold, Play.release, Play.set_residency, Play.begin_pass, Play.load]),
    st.sampled_from(HANDLES),
    st.sampled_from(Residency),
    st.booleans(),
)


@given(moves=st.lists(MOVES, max_size=40))
def test_whatever_is_asked_budgets_hold_and_holders_keep_theirs(moves):
    play = Play()
    for move, one, tier, pinned in moves:
        with suppress(ResourceExhausted):
            move(play, one, tier, pinned)
        play.check()
    play.clear(HANDLES)
    assert (play.world.manager.snapshot(), play.world.memory.places) == ((), [])


def test_a_load_to_host_that_finds_no_room_leaves_the_weights_on_the_device():
    world = World(host=10)
    world.load(A)
    assert world.ask(B) is LOADING  # takes the memory of the host copy
    assert world.manager.set_residency(A, HOST, pinned=True) is NO_MEMORY
    assert world.tiers() == {"a": DEVICE}


def test_what_only_lowers_to_the_device_says_who_pins_it_and_moves_nothing(world):
    assert world.manager.set_residency(A, DEVICE, pinned=True, lowers=True) is READY
    assert world.tiers() == {}
    world.manager.set_residency(A, HOST, pinned=True)
    world.loader.run(world.manager)
    assert world.manager.set_residency(A, DEVICE, pinned=False, lowers=True) is READY
    assert world.loader.waiting == []
    assert [(a.residency, a.pinned) for a in world.manager.snapshot()] == [(HOST, False)]


def test_nothing_falls_below_its_pin(world):
    """An earlier call to the host, done after a later one pinned it on the device."""
    world.load(A)
    world.manager.set_residency(A, DEVICE, pinned=True)
    assert world.manager.set_residency(A, HOST, pinned=True, kept=DEVICE) is READY
    assert world.tiers() == {"a": DEVICE}
