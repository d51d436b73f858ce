"""Admission and the shape of steps, on a gate that does what it is told."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.scheduler import MAX_OVERTAKES, PREPARED_AHEAD, Readiness, Scheduler
from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import AdapterIncompatible
from hypothesis import given
from hypothesis import strategies as st


class Gate:
    """Adapters as ready as `readiness` says (READY if it says nothing); counts holds."""

    def __init__(self):
        self.passes = 0
        self.prepared = []
        self.readiness = {}
        self.holds = Counter()

    def begin_pass(self):
        self.passes += 1

    def try_hold(self, handle):
        answer = self.readiness.get(handle.digest, Readiness.READY)
        if isinstance(answer, Exception):
            raise answer
        if answer is Readiness.READY:
            self.holds[handle.digest] += 1
        return answer

    def prepare(self, handle):
        self.prepared.append(handle.digest)
        if isinstance(self.readiness.get(handle.digest), Exception):
            raise self.readiness[handle.digest]

    def release(self, handle):
        self.holds[handle.digest] -= 1


@pytest.fixture
def gate():
    return Gate()


def make_scheduler(gate, *, max_running=4, max_prefill_tokens=8, kv_capacity_tokens=100):
    return Scheduler(
        max_running=max_running,
        max_prefill_tokens=max_prefill_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        adapters=gate,
    )


def sequence(request_id, prompt=3, new=4, adapter=None):
    handle = AdapterHandle(adapter, "") if adapter else None
    submit = Submit(request_id, tuple(range(prompt)), handle, Sampling(max_new_tokens=new))
    return Sequence(submit, prompt + new, 0.0, list(submit.prompt_token_ids))


def enqueue(scheduler, *sequences):
    for one in sequences:
        scheduler.enqueue(one)


def ids(sequences):
    return [one.request_id for one in sequences]


def advance(scheduler):
    """What the loop does with a plan: compute, append a token, end at the limit."""
    for chunk in scheduler.plan_step():
        completes = chunk.completes
        chunk.sequence.computed_tokens += chunk.rows
        if completes:
            chunk.sequence.tokens.append(0)
            if len(chunk.sequence.tokens) == chunk.sequence.limit_tokens:
                scheduler.end(chunk.sequence)


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


def test_one_without_memory_for_its_adapter_is_overtaken_so_often_and_no_more(gate):
    scheduler = make_scheduler(gate, max_running=1)
    gate.readiness["big"] = Readiness.NO_MEMORY
    enqueue(scheduler, sequence(0, adapter="big"))
    for i in range(1, MAX_OVERTAKES + 5):
        enqueue(scheduler, sequence(i))
    passed = 0
    while admitted := scheduler.admit(0.0).admitted:
        passed += len(admitted)
        scheduler.end(admitted[0])
    assert passed == MAX_OVERTAKES
    gate.readiness["big"] = Readiness.READY
    assert ids(scheduler.admit(0.0).admitted) == [0]


def test_adapters_of_those_next_in_line_are_prepared(gate):
    scheduler = make_scheduler(gate, max_running=1)
    enqueue(
        scheduler, sequence(0, adapter="x"), sequence(1), *(sequence(i, adapter=f"a{i}") for i in range(2, 9))
    )
    gate.readiness["a3"] = AdapterIncompatible("no")
    admission = scheduler.admit(0.0)
    assert (ids(admission.admitted), gate.prepared) == ([0], ["a2", "a3", "a4"])
    assert [refusal.sequence.request_id for refusal in admission.refused] == [3]
    assert len(gate.prepared) + 1 == PREPARED_AHEAD
    assert gate.holds == {"x": 1}


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


def check_limits(scheduler, gate):
    running = list(scheduler.running.values())
    assert len(running) <= 3
    assert sum(c.rows for c in scheduler.plan_step() if c.sequence.new_tokens == 0) <= 5
    held = Counter(one.adapter.digest for one in running if one.adapter)
    assert held == +gate.holds
    spans = sorted((one.kv.start, one.kv.end) for one in running)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(one.kv.length == one.limit_tokens for one in running)
