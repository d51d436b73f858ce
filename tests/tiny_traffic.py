"""Scheduler and residency together on adapters that are numbers of bytes, with a clock of steps."""

from __future__ import annotations

from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.messages import AdapterHandle, Residency, Sampling, Submit
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.engine.scheduler import Scheduler
from finetuned_service.engine.sequence import Sequence
from finetuned_service.errors import FinetunedError
from tiny_residency import FakeMemory, ManualLoader

ADAPTER_BYTES = 10


def adapter(name, size_bytes=ADAPTER_BYTES):
    return AdapterHandle(name, str(size_bytes))


class Traffic:
    """The engine's loop without a model: what it does with the scheduler, in the same order."""

    def __init__(
        self,
        *,
        max_running=4,
        room_for=2,
        host_room_for=100,
        kv_capacity_tokens=1000,
        max_prefill_tokens=1000,
    ):
        self.memory, self.loader = FakeMemory(room_for * ADAPTER_BYTES), ManualLoader()
        self.residency = ResidencyManager(self.memory, self.loader, host_room_for * ADAPTER_BYTES)
        self.scheduler = Scheduler(
            max_running=max_running,
            max_prefill_tokens=max_prefill_tokens,
            kv_capacity_tokens=kv_capacity_tokens,
            adapters=self.residency,
        )
        self.now = 0
        self.everyone = {}
        self.started = {}
        """Step of the start by request id."""
        self.arrived = {}
        self.ended = {}
        """How each ended: "done", "left", "late", or its error."""
        self.steps_run = 0
        self.calls = []

    def submit(self, tenant="t", handle=None, prompt=4, new=4, deadline=None):
        request_id = len(self.everyone)
        submit = Submit(request_id, (0,) * prompt, handle, Sampling(new), tenant, deadline_seconds=deadline)
        one = Sequence(submit, prompt + new, float(self.now), list(submit.prompt_token_ids))
        self.everyone[request_id] = one
        self.arrived[request_id] = self.now
        self.scheduler.enqueue(one)
        return request_id

    def cancel(self, request_id):
        if self.scheduler.find(request_id) is not None:
            self._end(self.everyone[request_id], "left")

    def end_loads(self, count=None):
        for digest, _work in self.loader.waiting[:count]:
            self._end_those_of_unreadable(digest)
        there = len(self.loader.waiting)
        self.loader.run(self.residency, there if count is None else min(count, there))

    def _end_those_of_unreadable(self, digest):
        """The loop fails who waits for what cannot be loaded."""
        error = self.memory.unreadable.get(digest)
        for one in list(self.scheduler.waiting.values()):
            if error is not None and one.adapter is not None and one.adapter.digest == digest:
                self._end(one, error)

    def set_residency(self, handle, tier, *, pinned):
        if self.residency.set_residency(handle, tier, pinned=pinned) is Readiness.NO_MEMORY:
            self.residency.unpin(handle)

    def step(self, *, loads=None):
        """Loads end, late ones go, turns are taken, all that run get a token."""
        self.end_loads(loads)
        self.now += 1
        for one in self.scheduler.expired(self.now):
            self._end(one, "late")
        admission = self.scheduler.admit(float(self.now))
        for refusal in admission.refused:
            self.ended[refusal.sequence.request_id] = refusal.error
        for one in admission.admitted:
            self.started[one.request_id] = self.now
        chunks = self.scheduler.plan_step()
        self.scheduler.charge(chunks)
        for chunk in chunks:
            completes = chunk.completes
            chunk.sequence.computed_tokens += chunk.rows
            if completes:
                chunk.sequence.tokens.append(0)
                if len(chunk.sequence.tokens) == chunk.sequence.limit_tokens:
                    self._end(chunk.sequence, "done")
        self.steps_run += bool(chunks)

    def _end(self, one, how):
        self.scheduler.end(one, sound=not isinstance(how, FinetunedError))
        self.ended[one.request_id] = how

    def waits(self, request_ids):
        return [self.started[i] - self.arrived[i] for i in request_ids]

    def tiers(self):
        return {a.digest: a.residency for a in self.residency.snapshot()}

    @property
    def on_device(self):
        return {digest for digest, tier in self.tiers().items() if tier is Residency.DEVICE}
