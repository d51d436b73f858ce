"""A scheduler on a gate that does what it is told, and the sequences for it."""

from __future__ import annotations

from collections import Counter

from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.scheduler import Scheduler
from finetuned_service.engine.sequence import Sequence


class Gate:
    """Adapters as ready as `readiness` says (READY if it says nothing); counts holds."""

    def __init__(self):
        self.passes = 0
        self.prepared = []
        self.readiness = {}
        self.pinned = set()
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
        answer = self.readiness.get(handle.digest, Readiness.READY)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def is_ready(self, handle):
        return self.readiness.get(handle.digest, Readiness.READY) is Readiness.READY

    def may_leave(self, handle):
        return handle.digest not in self.pinned

    def release(self, handle):
        self.holds[handle.digest] -= 1


def make_scheduler(gate, *, max_running=4, max_prefill_tokens=8, kv_capacity_tokens=100, **others):
    return Scheduler(
        max_running=max_running,
        max_prefill_tokens=max_prefill_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        adapters=gate,
        **others,
    )


def sequence(request_id, prompt=3, new=4, adapter=None, tenant="t", deadline=None):
    handle = AdapterHandle(adapter, "") if adapter else None
    prompt_ids = tuple(range(prompt))
    submit = Submit(
        request_id, prompt_ids, handle, Sampling(max_new_tokens=new), tenant, deadline_seconds=deadline
    )
    return Sequence(submit, prompt + new, 0.0, list(prompt_ids))


def enqueue(scheduler, *sequences):
    for one in sequences:
        scheduler.enqueue(one)


def ids(sequences):
    return [one.request_id for one in sequences]


def advance(scheduler):
    """What the loop does with a plan: compute, append a token, end at the limit."""
    chunks = scheduler.plan_step()
    scheduler.charge(chunks)
    for chunk in chunks:
        completes = chunk.completes
        chunk.sequence.computed_tokens += chunk.rows
        if completes:
            chunk.sequence.tokens.append(0)
            if len(chunk.sequence.tokens) == chunk.sequence.limit_tokens:
                scheduler.end(chunk.sequence)
