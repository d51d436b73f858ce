"""Scheduler, residency and KV ranges under whatever may come, step by step, against what must hold always.

Always: no capacity is exceeded, each range and each hold belongs to exactly one running sequence, what a
sequence runs on stays where it is. At the end: everybody who was not sent away was served, and nothing is left.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import pairwise

from finetuned_service.engine.messages import Residency
from finetuned_service.engine.scheduler import LOADS_AHEAD
from finetuned_service.engine.sequence import Phase
from finetuned_service.errors import InvalidAdapterFiles, ResourceExhausted
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_traffic import ADAPTER_BYTES, Traffic, adapter

KV_TOKENS, PREFILL_TOKENS = 40, 6
ADAPTERS = [adapter(f"a{i}", size) for i, size in enumerate((5, 10, 10, 10, 15, 20))]
TENANTS = st.sampled_from(["ann", "bob", "eve"])
HANDLES = st.sampled_from([None, *ADAPTERS])
FEW = st.integers(1, 8)


class EngineMachine(RuleBasedStateMachine):
    """Moves: submit, step (with any number of loads done), cancel, pin, load, unload, damage, time."""

    @initialize(slots=st.integers(1, 5), room=st.integers(2, 4), host=st.integers(2, 5))
    def begin(self, slots, room, host):
        self.slots, self.host_bytes = slots, host * ADAPTER_BYTES
        self.traffic = Traffic(
            max_running=slots,
            room_for=room,
            host_room_for=host,
            kv_capacity_tokens=KV_TOKENS,
            max_prefill_tokens=PREFILL_TOKENS,
        )
        self.places = {}

    @rule(tenant=TENANTS, handle=HANDLES, prompt=st.integers(1, 12), new=FEW)
    def submit(self, tenant, handle, prompt, new):
        self.traffic.submit(tenant, handle, prompt, new)

    @rule(tenant=TENANTS, handle=HANDLES, patience=FEW)
    def submit_with_a_deadline(self, tenant, handle, patience):
        self.traffic.submit(tenant, handle, deadline=self.traffic.now + patience)

    @rule(tenant=TENANTS, handle=HANDLES, count=st.integers(2, 12))
    def flood(self, tenant, handle, count):
        for _ in range(count):
            self.traffic.submit(tenant, handle, new=3)

    @rule(steps=FEW, loads=st.sampled_from([None, 0, 1]))
    def step(self, steps, loads):
        for _ in range(steps):
            self.traffic.step(loads=loads)
            self.check()

    @precondition(lambda self: self.traffic.everyone)
    @rule(data=st.data())
    def cancel(self, data):
        self.traffic.cancel(data.draw(st.sampled_from(sorted(self.traffic.everyone))))

    @rule(handle=st.sampled_from(ADAPTERS), tier=st.sampled_from(Residency), pinned=st.booleans())
    def set_residency(self, handle, tier, pinned):
        with suppress(ResourceExhausted):
            self.traffic.set_residency(handle, tier, pinned=pinned and tier is not Residency.STORED)

    @rule(handle=st.sampled_from(ADAPTERS), damaged=st.booleans())
    def damage(self, handle, damaged):
        if damaged:
            self.traffic.memory.unreadable[handle.digest] = InvalidAdapterFiles("damaged")
        else:
            self.traffic.memory.unreadable.pop(handle.digest, None)

    @invariant()
    def check(self):
        scheduler, residency = self.traffic.scheduler, self.traffic.residency
        running = list(scheduler.running.values())
        assert len(running) <= self.slots
        assert len(scheduler._loading) <= LOADS_AHEAD
        assert scheduler._loading.keys() <= scheduler.waiting.keys()
        spans = sorted((one.kv.start, one.kv.end) for one in running)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert sum(one.kv.length for one in running) == scheduler.kv.used <= KV_TOKENS
        assert all(one.kv.length == one.limit_tokens >= len(one.tokens) for one in running)
        assert sum(c.rows for c in scheduler.plan_step() if not c.sequence.new_tokens) <= PREFILL_TOKENS
        held = Counter(one.adapter.digest for one in running if one.adapter)
        entries = residency.snapshot()
        assert {a.digest: a.running_sequences for a in entries if a.running_sequences} == held
        placed_bytes = sum(place.size_bytes for place in self.traffic.memory.places)
        assert sum(a.resident_bytes for a in entries) - placed_bytes <= self.host_bytes
        self.check_places(running)
        for one in self.traffic.everyone.values():
            assert (one.phase is Phase.ENDED) == (one.request_id in self.traffic.ended)
            assert (one.kv is not None) == (one.phase is Phase.RUNNING)

    def check_places(self, running):
        """What a sequence began on is what it runs on, also after unload, reload and eviction of all else."""
        now = {one.request_id: self.traffic.residency.place_of(one.adapter) for one in running if one.adapter}
        for request_id, place in now.items():
            assert self.places.get(request_id, place) is place
            assert place in self.traffic.memory.places
        self.places = now

    def teardown(self):
        if not hasattr(self, "traffic"):
            return
        traffic = self.traffic
        traffic.memory.unreadable.clear()
        for handle in ADAPTERS:
            traffic.residency.unpin(handle)
        limit = 60 + 25 * len(traffic.scheduler.waiting)
        for _ in range(limit):
            traffic.step()
            self.check()
            if len(traffic.ended) == len(traffic.everyone):
                break
        assert len(traffic.ended) == len(traffic.everyone), "somebody starves"
        for handle in ADAPTERS:
            traffic.set_residency(handle, Residency.STORED, pinned=False)
        traffic.end_loads()
        assert traffic.residency.snapshot() == ()
        assert (traffic.scheduler.kv.used, traffic.memory.places) == (0, [])
        assert traffic.scheduler.waiting_tenants == 0
        assert traffic.scheduler.next_deadline_seconds is None


EngineMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestEngineModel = EngineMachine.TestCase
