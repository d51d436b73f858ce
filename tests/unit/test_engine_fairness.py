"""Turns between tenants and adapters: virtual token counters, lanes, and the bounds that follow."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from finetuned_service.engine.fair_queue import FairQueue
from finetuned_service.engine.fairness import COMPLETION_WEIGHT, PROMPT_WEIGHT, VirtualCounters
from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.scheduler import LOADS_AHEAD
from hypothesis import given
from hypothesis import strategies as st
from tiny_scheduler import Gate, advance, enqueue, ids, make_scheduler, sequence


def test_who_begins_to_wait_is_lifted_to_the_least_of_those_who_wait():
    counters = VirtualCounters()
    counters.enter("a")
    counters.charge("a", 100)
    counters.enter("b")
    assert counters.served("b") == 100
    counters.charge("b", 50)
    counters.charge("a", 500)
    counters.enter("c")
    assert counters.served("c") == 150


def test_who_was_away_keeps_what_it_had_more_than_others():
    counters = VirtualCounters()
    for name, cost in (("a", 10), ("b", 70)):
        counters.enter(name)
        counters.charge(name, cost)
    counters.leave("b")
    counters.enter("b")
    assert (counters.served("a"), counters.served("b")) == (10, 80)


def test_after_an_empty_queue_nobody_begins_below_the_last_one():
    counters = VirtualCounters()
    counters.enter("a")
    counters.charge("a", 100)
    counters.leave("a")
    counters.enter("b")
    assert counters.served("b") == 100


def test_only_those_are_forgotten_of_whom_nothing_would_be_remembered():
    counters = VirtualCounters()
    for name, cost in (("idle", 5), ("busy", 50), ("waits", 20)):
        counters.enter(name)
        counters.charge(name, cost)
    counters.leave("idle")
    counters.leave("busy")
    counters.forget_caught_up()
    assert (len(counters), counters.served("busy"), counters.served("waits")) == (2, 55, 25)


def test_tenants_that_come_and_go_leave_nothing_behind():
    queue = FairQueue()
    for i in range(5000):
        one = sequence(i, tenant=f"t{i}", adapter=f"a{i}")
        queue.add(one)
        queue.take(one, 3)
    assert len(queue._tenants) <= 1001
    for i in range(5000):
        one = sequence(i, tenant="same", adapter=f"a{i}")
        queue.add(one)
        queue.take(one, 3)
    assert len(queue._tenants["same"].adapters) <= 1001


def test_turns_go_to_the_tenant_and_then_the_adapter_with_the_least_service():
    queue = FairQueue()
    lanes = [("big", "x"), ("big", "x"), ("big", "y"), ("small", "x"), ("small", None)]
    everyone = [sequence(i, prompt=10, tenant=t, adapter=a) for i, (t, a) in enumerate(lanes)]
    for one in everyone:
        queue.add(one)
    queue.charge(everyone[0], 100)
    order = []
    for one in queue.turns():
        order.append(one.request_id)
        queue.take(one, PROMPT_WEIGHT * one.prompt_tokens)
    assert order == [3, 4, 2, 0, 1]


def test_a_first_that_stays_is_told_once_and_the_others_pass_it():
    queue = FairQueue()
    everyone = [sequence(i, adapter="cold" if i < 2 else "warm") for i in range(4)]
    for one in everyone:
        queue.add(one)
    order = []
    for one in queue.turns():
        order.append(one.request_id)
        if one.request_id >= 2:
            queue.take(one, 1)
    assert order == [0, 2, 3]


def test_a_tenant_with_thousands_waiting_delays_the_first_of_another_by_one_place():
    scheduler = make_scheduler(Gate(), max_running=4, kv_capacity_tokens=1000)
    enqueue(scheduler, *(sequence(i, tenant="flood") for i in range(5000)))
    for _ in range(100):
        scheduler.admit(0.0)
        advance(scheduler)
    enqueue(scheduler, sequence(9999, tenant="newcomer"))
    admitted = []
    while 9999 not in admitted:
        admitted += ids(scheduler.admit(0.0).admitted)
        advance(scheduler)
    assert admitted[0] == 9999, "the next place that is free is its own"


def test_with_cold_adapters_of_a_flood_the_first_of_another_waits_for_so_many_and_no_more():
    scheduler = make_scheduler(Gate(), max_running=2, kv_capacity_tokens=1000)
    enqueue(scheduler, *(sequence(i, tenant="flood", adapter=f"a{i}") for i in range(500)))
    for _ in range(40):
        scheduler.admit(0.0)
        advance(scheduler)
    enqueue(scheduler, sequence(9999, tenant="newcomer"))
    admitted = []
    while 9999 not in admitted:
        admitted += ids(scheduler.admit(0.0).admitted)
        advance(scheduler)
    assert len(admitted) <= LOADS_AHEAD + 1


def test_tokens_of_replies_count_twice_those_of_prompts_and_copied_ones_nothing():
    scheduler = make_scheduler(Gate(), max_running=1)
    enqueue(scheduler, sequence(0, prompt=3, new=4, tenant="a"), *(sequence(i, tenant="b") for i in (1, 2)))
    scheduler.admit(0.0)
    for _ in range(4):
        advance(scheduler)
    counters = scheduler._queue._counters
    assert counters.served("a") == 3 * PROMPT_WEIGHT + 4 * COMPLETION_WEIGHT


def test_who_leaves_before_its_adapter_came_was_given_nothing():
    gate = Gate()
    gate.readiness["cold"] = Readiness.LOADING
    scheduler = make_scheduler(gate)
    one = sequence(0, prompt=50, adapter="cold", tenant="a")
    enqueue(scheduler, one)
    scheduler.admit(0.0)
    assert scheduler._queue._counters.served("a") == 50
    scheduler.end(one)
    assert scheduler._queue._counters.served("a") == 0


@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=40, max_size=40),
        min_size=2,
        max_size=4,
    ),
    slots=st.integers(1, 4),
)
def test_tenants_that_always_wait_get_equal_service(sizes, slots):
    """Theorem 4.4 of the paper, with our batch: twice the largest prompt or batch, in weighted tokens."""
    scheduler = make_scheduler(Gate(), max_running=slots, max_prefill_tokens=1000, kv_capacity_tokens=1000)
    todo, number = [deque(own) for own in sizes], 0
    for tenant, own in enumerate(sizes):
        for prompt, new in own:
            enqueue(scheduler, sequence(number, prompt, new, tenant=str(tenant)))
            number += 1
    served = Counter()
    bound = 2 * max(9 * PROMPT_WEIGHT, slots * 9 * COMPLETION_WEIGHT) + 9 * PROMPT_WEIGHT
    waiting = Counter({str(tenant): len(own) for tenant, own in enumerate(todo)})
    while min(waiting.values()):
        for one in scheduler.admit(0.0).admitted:
            served[one.request.tenant] += PROMPT_WEIGHT * one.prompt_tokens
            waiting[one.request.tenant] -= 1
        for chunk in scheduler.plan_step():
            if chunk.completes:
                served[chunk.sequence.request.tenant] += COMPLETION_WEIGHT
        advance(scheduler)
        if min(waiting.values()):
            totals = [served[str(tenant)] for tenant in range(len(sizes))]
            assert max(totals) - min(totals) <= bound


@pytest.mark.parametrize(("own", "other", "expected"), [(0, 50, 0), (3, 50, 6), (10, 4, 14)])
def test_others_have_as_many_turns_before_one_as_its_own_tenant(own, other, expected):
    queue = FairQueue()
    for i in range(own):
        queue.add(sequence(i, tenant="own"))
    for i in range(other):
        queue.add(sequence(100 + i, tenant="other"))
    assert queue.ahead_of(sequence(999, tenant="own")) == expected
