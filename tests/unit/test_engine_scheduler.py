"""Admission and the shape of steps, on a gate that does what it is told."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import pairwise

import pytest
from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.scheduler import LOADS_AHEAD, MAX_OVERTAKES, PREPARED_AHEAD
from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import AdapterIncompatible
from hypothesis import given
from hypothesis import strategies as st
from tiny_scheduler import Gate, advance, enqueue, ids, make_scheduler, sequence


@pytest.fixture
def gate():
    return Gate()


def test_first_come_first_served_up_to_the_slots(gate):
    scheduler = make_scheduler(gate, max_running=2)
    enqueue(scheduler, *(sequence(i) for i in range(3)))
    assert ids(scheduler.admit(0.0).admitted) == [0, 1]
    scheduler.end(scheduler.running[0])
    assert ids(scheduler.admit(0.0).admitted) == [2]
    assert gate.passes == 2


def test_nobody_passes_one_that_waits_for_kv(gate):
    scheduler = make_scheduler(gate, kv_capacity_tokens=20)
    enqueue(scheduler, sequence(1, 8, 2), sequence(2, 10, 5), sequence(3, 1, 1))
    assert ids(scheduler.admit(0.0).admitted) == [1]
    scheduler.end(scheduler.running[1])
    assert ids(scheduler.admit(0.0).admitted) == [2, 3]


def test_one_whose_adapter_loads_lets_others_pass(gate):
    scheduler = make_scheduler(gate)
    gate.readiness["cold"] = Readiness.LOADING
    enqueue(scheduler, sequence(1, adapter="cold"), sequence(2, adapter="warm"), sequence(3))
    assert ids(scheduler.admit(1.0).admitted) == [2, 3]
    gate.readiness["cold"] = Readiness.READY
    (late,) = scheduler.admit(3.5).admitted
    assert (late.request_id, late.load_seconds, late.admitted_seconds) == (1, 2.5, 3.5)
    assert gate.holds == {"warm": 1, "cold": 1}


def test_those_without_an_adapter_pass_one_that_finds_no_memory_and_never_stop(gate):
    scheduler = make_scheduler(gate, max_running=1)
    gate.readiness["big"] = Readiness.NO_MEMORY
    enqueue(scheduler, sequence(0, adapter="big"), *(sequence(i) for i in range(1, 3 * MAX_OVERTAKES)))
    passed = 0
    while admitted := scheduler.admit(0.0).admitted:
        passed += len(admitted)
        scheduler.end(admitted[0])
    assert passed == 3 * MAX_OVERTAKES - 1
    gate.readiness["big"] = Readiness.READY
    assert ids(scheduler.admit(0.0).admitted) == [0]


def starve(scheduler, gate, busy):
    """One that finds no memory, overtaken until one busy adapter is held back; the rounds it took."""
    gate.readiness["cold"] = Readiness.NO_MEMORY
    enqueue(scheduler, sequence(0, adapter="cold"))
    for i in range(1, 200):
        enqueue(scheduler, sequence(i, new=3 + i % 2, adapter=busy[i % len(busy)]))
    rounds = 0
    while not scheduler.drains:
        scheduler.admit(0.0)
        advance(scheduler)
        rounds += 1
        assert rounds < 200
    return rounds


def running_adapters(scheduler):
    return {one.adapter.digest for one in scheduler.running.values()}


def test_a_busy_adapter_runs_out_for_one_that_waits_and_the_others_go_on(gate):
    scheduler = make_scheduler(gate, max_running=4)
    starve(scheduler, gate, ("a", "b", "c"))
    started = set()
    while {"a", "b", "c"} == running_adapters(scheduler):
        started.update(one.adapter.digest for one in scheduler.admit(0.0).admitted)
        advance(scheduler)
    (drained,) = {"a", "b", "c"} - running_adapters(scheduler)
    assert drained not in started
    gate.readiness["cold"] = Readiness.READY
    enqueue(scheduler, sequence(1000, adapter=drained, tenant="newcomer"))
    assert ids(scheduler.admit(0.0).admitted)[0] == 0
    advance(scheduler)
    scheduler.end(scheduler.running[0])
    assert scheduler.admit(0.0).admitted[0].request_id == 1000, "who was held back goes on"
    assert scheduler.drains == 1


def test_with_no_memory_at_all_one_after_another_is_held_back(gate):
    scheduler = make_scheduler(gate, max_running=4)
    starve(scheduler, gate, ("a", "b", "c"))
    for _ in range(40):
        scheduler.admit(0.0)
        advance(scheduler)
    assert (running_adapters(scheduler), scheduler.drains) == (set(), 3)
    scheduler.end(scheduler.find(0))
    scheduler.admit(0.0)
    assert running_adapters(scheduler), "who waited for the memory is gone, and nobody is held back for it"


def test_a_pinned_adapter_is_never_held_back(gate):
    scheduler = make_scheduler(gate, max_running=4)
    gate.pinned = {"a", "b"}
    starve(scheduler, gate, ("a", "b", "c"))
    for _ in range(20):
        advance(scheduler)
        scheduler.admit(0.0)
    assert running_adapters(scheduler) == {"a", "b"}
    assert scheduler.drains == 1


def test_adapters_of_those_next_in_turn_are_prepared(gate):
    scheduler = make_scheduler(gate, max_running=1)
    enqueue(
        scheduler, sequence(0, adapter="x"), sequence(1), *(sequence(i, adapter=f"a{i}") for i in range(2, 9))
    )
    gate.readiness["a3"] = AdapterIncompatible("no")
    admission = scheduler.admit(0.0)
    assert (ids(admission.admitted), gate.prepared) == ([0], ["x", "a2", "a3", "a4"])
    assert [refusal.sequence.request_id for refusal in admission.refused] == [3]
    assert len(gate.prepared) == PREPARED_AHEAD
    assert gate.holds == {"x": 1}


def test_so_many_adapters_are_on_their_way_and_no_more(gate):
    scheduler = make_scheduler(gate)
    cold = [f"a{i}" for i in range(9)]
    gate.readiness = dict.fromkeys(cold, Readiness.LOADING)
    enqueue(scheduler, *(sequence(i, adapter=digest) for i, digest in enumerate(cold)), sequence(9))
    assert ids(scheduler.admit(0.0).admitted) == [9]
    assert gate.prepared == cold[:LOADS_AHEAD]
    scheduler.admit(0.0)
    assert gate.prepared == cold[:LOADS_AHEAD] * 2, "the same ones, until they start"
    scheduler.end(scheduler.find(0))
    scheduler.admit(0.0)
    assert gate.prepared[-LOADS_AHEAD:] == cold[1 : LOADS_AHEAD + 1]


def test_a_refused_adapter_ends_its_request_only(gate):
    scheduler = make_scheduler(gate)
    gate.readiness["bad"] = AdapterIncompatible("no")
    enqueue(scheduler, sequence(1, adapter="bad"), sequence(2))
    admission = scheduler.admit(0.0)
    assert ids(admission.admitted) == [2]
    assert [(r.sequence.request_id, r.error.message) for r in admission.refused] == [(1, "no")]
    assert scheduler.find(1) is None


def test_prompts_share_the_budget_beside_all_decoding_rows(gate):
    scheduler = make_scheduler(gate, max_prefill_tokens=8)
    enqueue(scheduler, sequence(1, prompt=3), sequence(2, prompt=12), sequence(3, prompt=2))
    scheduler.admit(0.0)
    shape = []
    for _ in range(4):
        shape.append([(c.sequence.request_id, c.rows) for c in scheduler.plan_step()])
        advance(scheduler)
    assert shape == [
        [(1, 3), (2, 5)],
        [(1, 1), (2, 7), (3, 1)],
        [(1, 1), (2, 1), (3, 1)],
        [(1, 1), (2, 1), (3, 1)],
    ]


def test_long_prompts_of_a_tenant_do_not_delay_the_short_one_of_another(gate):
    scheduler = make_scheduler(gate, max_prefill_tokens=8, kv_capacity_tokens=200)
    enqueue(scheduler, *(sequence(i, prompt=40, tenant="long") for i in range(3)))
    scheduler.admit(0.0)
    advance(scheduler)
    enqueue(scheduler, sequence(9, prompt=3, tenant="short"))
    scheduler.admit(0.0)
    shape = []
    for _ in range(2):
        shape.append([(c.sequence.request_id, c.rows) for c in scheduler.plan_step()])
        advance(scheduler)
    assert shape == [[(0, 5), (9, 3)], [(9, 1), (0, 8)]]


def test_a_tenant_of_many_short_prompts_lets_a_long_one_of_another_end(gate):
    scheduler = make_scheduler(gate, max_prefill_tokens=8, kv_capacity_tokens=400)
    enqueue(scheduler, sequence(0, prompt=100, tenant="long"))
    scheduler.admit(0.0)
    steps = 0
    while not scheduler.running[0].new_tokens:
        steps += 1
        enqueue(scheduler, sequence(steps, prompt=8, new=1, tenant="short"))
        scheduler.admit(0.0)
        advance(scheduler)
    assert steps == 25, "half of each step's budget is for its own"


def test_nothing_of_an_ended_sequence_is_kept_until_its_deadline(gate):
    scheduler = make_scheduler(gate)
    enqueue(scheduler, sequence(0, deadline=1.0))  # always before the others, and never over
    for i in range(1, 1000):
        one = sequence(i, deadline=3600.0)
        enqueue(scheduler, one)
        scheduler.end(one)
    del one
    alive = [thing for thing in gc.get_objects() if type(thing) is Sequence]
    assert not any(one.request.deadline_seconds == 3600.0 for one in alive)
    assert len(scheduler._deadlines._heap) < 200
    assert scheduler.next_deadline_seconds == 1.0
    assert ids(scheduler.expired(2.0)) == [0]
    assert scheduler.next_deadline_seconds is None


def test_the_last_chunk_of_a_prompt_chooses_a_token(gate):
    scheduler = make_scheduler(gate, max_prefill_tokens=4)
    enqueue(scheduler, sequence(1, prompt=6))
    scheduler.admit(0.0)
    assert [c.completes for c in scheduler.plan_step()] == [False]
    advance(scheduler)
    assert [c.completes for c in scheduler.plan_step()] == [True]


@pytest.mark.parametrize("started", [False, True])
def test_ending_frees_everything_at_once(gate, started):
    scheduler = make_scheduler(gate)
    one = sequence(1, adapter="a")
    enqueue(scheduler, one)
    if started:
        scheduler.admit(0.0)
        advance(scheduler)
    scheduler.end(one)
    scheduler.end(one)
    assert (scheduler.kv.used, gate.holds["a"], scheduler.find(1)) == (0, 0, None)
    assert one.phase is Phase.ENDED
    assert scheduler.plan_step() == []


@given(data=st.data())
def test_whatever_comes_and_goes_limits_hold_and_all_end(data):
    gate = Gate()
    scheduler = make_scheduler(gate, max_running=3, max_prefill_tokens=5, kv_capacity_tokens=24)
    arrivals = data.draw(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6), st.sampled_from([None, "a", "b"])))
    )
    gate.readiness = data.draw(st.dictionaries(st.sampled_from("ab"), st.sampled_from(Readiness)))
    everyone = []
    for request_id, (prompt, new, adapter) in enumerate(arrivals):
        everyone.append(sequence(request_id, prompt, new, adapter))
        enqueue(scheduler, everyone[-1])
        scheduler.admit(0.0)
        check_limits(scheduler, gate)
        for _ in range(data.draw(st.integers(0, 2))):
            advance(scheduler)
        if data.draw(st.booleans()):
            scheduler.end(data.draw(st.sampled_from(everyone)))
            check_limits(scheduler, gate)
    gate.readiness.clear()
    for _ in range(200):
        scheduler.admit(0.0)
        check_limits(scheduler, gate)
        advance(scheduler)
    assert [one.phase for one in everyone] == [Phase.ENDED] * len(everyone)
    assert (scheduler.kv.used, gate.holds.total()) == (0, 0)


class Sharing:
    """A scheduler as the native path has it: blocks, a cache of prefixes, tenants, deadlines. In its arena tokens, and whose
    they are, stand for keys and values."""

    def __init__(self):
        self.gate, self.arena = Gate(), {}
        self.scheduler = make_scheduler(
            self.gate,
            max_running=3,
            max_prefill_tokens=5,
            kv_capacity_tokens=40,
            kv_block_tokens=4,
            shares_prefixes=True,
        )

    def step(self, now):
        for late in self.scheduler.expired(now):
            self.scheduler.end(late, sound=True)
        self.scheduler.admit(now)
        self.scheduler.share_prefixes(self._copy)
        chunks = self.scheduler.plan_step()
        assert sum(chunk.rows for chunk in chunks if not chunk.sequence.new_tokens) <= 5
        self.scheduler.charge(chunks)
        for chunk in chunks:
            self._compute(chunk)
        running = list(self.scheduler.running.values())
        spans = sorted((one.kv.start, one.kv.end) for one in running)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert self.scheduler.kv_tokens_used == sum(one.kv.length for one in running)

    def _copy(self, found):
        for place in range(found.tokens):
            self.arena[found.target + place] = self.arena[found.source + place]

    def _compute(self, chunk):
        one, completes = chunk.sequence, chunk.completes
        for place in range(one.computed_tokens, one.computed_tokens + chunk.rows):
            self.arena[one.kv.start + place] = (one.cache_key, one.tokens[place])
        one.computed_tokens += chunk.rows
        held = [self.arena[one.kv.start + place] for place in range(one.computed_tokens)]
        assert held == [(one.cache_key, token) for token in one.tokens[: one.computed_tokens]]
        if completes:
            one.tokens.append(1000 + one.request_id)
            if len(one.tokens) == one.limit_tokens:
                self.scheduler.end(one, sound=True)


ARRIVALS = st.tuples(
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from("tu"),
    st.sampled_from([None, 3.0, 30.0]),
)
"""Prompt, reply, adapter, tenant, seconds until the deadline."""


@given(data=st.data())
def test_what_prompts_share_was_computed_for_the_same_tokens_and_nothing_leaks(data):
    world, everyone = Sharing(), []
    for now, (*kind, seconds) in enumerate(data.draw(st.lists(ARRIVALS, max_size=25))):
        everyone.append(sequence(now, *kind, deadline=None if seconds is None else now + seconds))
        enqueue(world.scheduler, everyone[-1])
        for _ in range(data.draw(st.integers(0, 2))):
            world.step(float(now))
        if data.draw(st.booleans()):
            world.scheduler.end(data.draw(st.sampled_from(everyone)), sound=data.draw(st.booleans()))
    for _ in range(400):
        world.step(29.0)
    assert [one.phase for one in everyone] == [Phase.ENDED] * len(everyone)
    assert (world.scheduler.kv_tokens_used, world.gate.holds.total()) == (0, 0)
    assert world.scheduler.kv.used == world.scheduler.prefixes.used
    assert world.scheduler.next_deadline_seconds is None


def check_limits(scheduler, gate):
    running = list(scheduler.running.values())
    assert len(running) <= 3
    assert sum(c.rows for c in scheduler.plan_step() if c.sequence.new_tokens == 0) <= 5
    held = Counter(one.adapter.digest for one in running if one.adapter)
    assert held == +gate.holds
    spans = sorted((one.kv.start, one.kv.end) for one in running)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(one.kv.length == one.limit_tokens for one in running)
