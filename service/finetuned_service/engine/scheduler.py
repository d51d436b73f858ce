"""Who runs in the next step: admission and the shape of the batch. Pure logic, no torch.

Whose turn it is, `fair_queue.py` says: the tenant with the least service, and of its adapters likewise. A
sequence whose adapter is not in place keeps its turn: it stands before the queue, with at most `LOADS_AHEAD` in
all, and is asked first in each pass until it starts. While its adapter is loaded the others pass. While there
is no memory for it, since running sequences use what there is, `MAX_OVERTAKES` others pass; then busy adapters
start no more sequences, one after another (`drains.py`), until the memory is there, and all else goes on.

Each sequence holds its whole KV range from admission to its end, so that nothing that runs is ever
preempted; nobody passes one that waits for KV or a slot only.

So the first request of a tenant has at most `LOADS_AHEAD` others before it, and one of each tenant that
has had as little; whatever else is queued comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from finetuned_service.engine.allocator import Range, RangeAllocator
from finetuned_service.engine.chunks import Chunk, prompt_chunks
from finetuned_service.engine.deadlines import Deadlines, StartPace, refuse_late
from finetuned_service.engine.drains import Drains
from finetuned_service.engine.fair_queue import FairQueue
from finetuned_service.engine.fairness import COMPLETION_WEIGHT, PROMPT_WEIGHT
from finetuned_service.engine.gate import AdapterGate, Readiness
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.prefix_cache import MAX_ENTRIES, PrefixCache, PrefixCopy
from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import FinetunedError

MAX_OVERTAKES = 16
"""Sequences that start while another, whose turn it was, finds no memory for its adapter."""
LOADS_AHEAD = 4
"""Sequences whose turn it was and whose adapters are on their way."""
PREPARED_AHEAD = 4
"""Adapters next in turn that are brought or kept in place while there is no room for their sequences."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A waiting sequence that ended instead of being admitted."""

    sequence: Sequence
    error: FinetunedError


@dataclass(frozen=True, slots=True)
class Admission:
    """What one pass over the queue decided."""

    admitted: list[Sequence]
    refused: list[Refusal]


@dataclass(slots=True)
class _Pass:
    """One pass over those who wait, so far."""

    now_seconds: float
    admitted: list[Sequence] = field(default_factory=list[Sequence])
    passed_over: list[Sequence] = field(default_factory=list[Sequence])
    """Those that found no memory for their adapter."""
    blocked: bool = False
    """One waits for a slot or KV only: nobody passes it."""
    starved: bool = False
    """One was overtaken too often: what memory becomes free is for it."""


class Scheduler:
    """Owns the queue, the running set and the KV ranges."""

    def __init__(
        self,
        *,
        max_running: int,
        max_prefill_tokens: int,
        kv_capacity_tokens: int,
        adapters: AdapterGate,
        kv_block_tokens: int = 1,
        shares_prefixes: bool = False,
        kept_prefixes: int = MAX_ENTRIES,
    ) -> None:
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens
        self._adapters = adapters
        self.kv = RangeAllocator(kv_capacity_tokens, kv_block_tokens)
        self.prefixes = PrefixCache(self.kv, kv_block_tokens, kept_prefixes) if shares_prefixes else None
        self.waiting: dict[int, Sequence] = {}
        """In the order of arrival."""
        self.running: dict[int, Sequence] = {}
        self._queue = FairQueue()
        self._loading: dict[int, Sequence] = {}
        """Of those that wait, the ones whose turn it was; no two have the same adapter."""
        self._drains = Drains()
        self._deadlines = Deadlines()
        self._pace = StartPace()

    def check_deadline(self, sequence: Sequence, now_seconds: float) -> None:
        """Refuse a sequence that would not have its place in time.

        Raises:
            DeadlineExceeded: see `deadlines.refuse_late`.
        """
        wait_seconds = None
        if self.waiting and self._is_full_for(sequence):
            ahead = self._queue.ahead_of(sequence) + len(self._loading)
            wait_seconds = self._pace.seconds_until(ahead, now_seconds)
        refuse_late(sequence, wait_seconds, now_seconds)

    def enqueue(self, sequence: Sequence) -> None:
        if not self.waiting:
            self._pace.forget()
        self.waiting[sequence.request_id] = sequence
        self._queue.add(sequence)
        self._deadlines.add(sequence)

    def expired(self, now_seconds: float) -> list[Sequence]:
        """Sequences that wait or run and whose deadline is over; the caller ends them."""
        return self._deadlines.expired(now_seconds)

    @property
    def next_deadline_seconds(self) -> float | None:
        return self._deadlines.next_seconds

    @property
    def waiting_tenants(self) -> int:
        """Tenants with a sequence that waits for its turn."""
        return self._queue.waiting_tenants

    @property
    def drains(self) -> int:
        """How often a busy adapter was held back for one that found no memory."""
        return self._drains.begun

    def find(self, request_id: int) -> Sequence | None:
        return self.running.get(request_id) or self.waiting.get(request_id)

    @property
    def kv_tokens_used(self) -> int:
        """Of running sequences; what the prefix cache holds is given up as soon as it is needed."""
        return self.kv.used - (self.prefixes.used if self.prefixes else 0)

    def allocate_kv(self, length: int) -> Range | None:
        """A range for `length` tokens, from the prefix cache if it must be; None if there is none."""
        if self.prefixes is not None:
            self.prefixes.make_room(length)
        return self.kv.allocate(length)

    def end(self, sequence: Sequence, *, sound: bool = False) -> None:
        """Take a sequence out, wherever it is, with all that it holds.

        Args:
            sequence: waiting, running or ended.
            sound: what it computed is right and may serve later prompts.
        """
        self.waiting.pop(sequence.request_id, None)
        self.running.pop(sequence.request_id, None)
        self._deadlines.forget(sequence)
        if self._loading.pop(sequence.request_id, None) is not None:
            self._queue.charge(sequence, -_prompt_cost(sequence))  # it was given nothing
        else:
            self._queue.remove(sequence)
        if sequence.kv is not None:
            if sound and self.prefixes is not None:
                computed = sequence.tokens[: sequence.computed_tokens]
                self.prefixes.keep(sequence.cache_key, computed, sequence.kv)
            else:
                self.kv.free(sequence.kv)
            sequence.kv = None
        if sequence.holds_adapter and sequence.adapter is not None:
            self._adapters.release(sequence.adapter)
            sequence.holds_adapter = False
        sequence.phase = Phase.ENDED

    def admit(self, now_seconds: float) -> Admission:
        """Move waiting sequences that have a slot, KV and their adapter into the running set."""
        self._adapters.begin_pass()
        current = _Pass(now_seconds)
        refused: list[Refusal] = []
        prepared = 0
        for sequence in self._candidates(current):
            had_its_turn = sequence.request_id in self._loading
            try:
                self._consider(sequence, current)
            except FinetunedError as error:
                self.end(sequence)
                refused.append(Refusal(sequence, error))
            if current.blocked and not had_its_turn:
                prepared += 1
                if prepared == PREPARED_AHEAD:
                    break
        return Admission(current.admitted, refused)

    def charge(self, chunks: Iterable[Chunk]) -> None:
        """Count what a step gives its sequences as service of their tenants; prompts were counted at the start."""
        for chunk in chunks:
            if chunk.completes:
                self._queue.charge(chunk.sequence, COMPLETION_WEIGHT)

    def share_prefixes(self, copy: Callable[[PrefixCopy], None]) -> int:
        """Before a step: copy what prompts that have not begun share with others; returns how many tokens."""
        fresh = [sequence for sequence in self.running.values() if not sequence.computed_tokens]
        total = 0
        for sequence in fresh:
            copied = self.begin_at(sequence, len(sequence.tokens) - 1, copy)
            self._queue.charge(sequence, -PROMPT_WEIGHT * copied)  # as good as free
            total += copied
        return total

    def begin_at(self, sequence: Sequence, most_tokens: int, copy: Callable[[PrefixCopy], None]) -> int:
        """Copy up to `most_tokens` of a sequence's beginning if they are known; returns how many were."""
        if self.prefixes is None or sequence.kv is None:
            return 0
        prompt = sequence.tokens[: most_tokens + 1]
        found = self.prefixes.find(sequence.cache_key, prompt, self.running.values())
        if found is None:
            return 0
        source, tokens = found
        copy(PrefixCopy(source.start, sequence.kv.start, tokens))
        sequence.computed_tokens = sequence.cached_tokens = tokens
        return tokens

    def plan_step(self) -> list[Chunk]:
        """One row for each decoding sequence, then prompt chunks within the budget (`prompt_chunks`)."""
        running = self.running.values()
        decoding = [Chunk(sequence, 1) for sequence in running if sequence.new_tokens]
        prompts = [sequence for sequence in running if not sequence.new_tokens]
        return decoding + prompt_chunks(prompts, self._max_prefill_tokens)

    def _has_room(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._max_running:
            return False
        if self.prefixes is not None:
            return self.prefixes.make_room(sequence.limit_tokens)
        return self.kv.can_allocate(sequence.limit_tokens)

    def _is_full_for(self, sequence: Sequence) -> bool:
        free_tokens = self.kv.capacity - self.kv_tokens_used
        return len(self.running) >= self._max_running or free_tokens < sequence.limit_tokens

    def _candidates(self, current: _Pass) -> Iterator[Sequence]:
        yield from list(self._loading.values())
        if not current.starved:
            self._drains.end()  # before the others are asked: nothing may run, and no other pass may come
        yield from self._queue.turns()

    def _consider(self, sequence: Sequence, current: _Pass) -> None:
        handle = sequence.adapter
        if handle is not None:
            had_its_turn = sequence.request_id in self._loading
            if self._is_held_back(handle, current, had_its_turn=had_its_turn):
                if had_its_turn:
                    current.passed_over.append(sequence)
                return
            readiness = self._adapters.prepare(handle)
            if readiness is not Readiness.READY:
                self._keep_turn(sequence, current.now_seconds)
                if readiness is Readiness.NO_MEMORY:
                    self._pass_over(sequence, current)
                return
        current.blocked = current.blocked or not self._has_room(sequence)
        if not current.blocked:
            self._start(sequence, current)

    def _is_held_back(self, handle: AdapterHandle, current: _Pass, *, had_its_turn: bool) -> bool:
        if not had_its_turn:
            if handle.digest in self._drains:
                return True
            if any(handle == other.adapter for other in self._loading.values()):
                return True  # it follows that one
        may_load = not current.starved and (had_its_turn or len(self._loading) < LOADS_AHEAD)
        return not (may_load or self._adapters.is_ready(handle))

    def _keep_turn(self, sequence: Sequence, now_seconds: float) -> None:
        if sequence.request_id not in self._loading:
            self._queue.take(sequence, _prompt_cost(sequence))
            self._loading[sequence.request_id] = sequence
            sequence.load_began_seconds = now_seconds

    def _pass_over(self, sequence: Sequence, current: _Pass) -> None:
        current.passed_over.append(sequence)
        if sequence.overtaken >= MAX_OVERTAKES:
            current.starved = True
            self._drains.extend(self.running.values(), self._adapters.may_leave)

    def _start(self, sequence: Sequence, current: _Pass) -> None:
        if sequence.adapter is not None:
            readiness = self._adapters.try_hold(sequence.adapter)
            assert readiness is Readiness.READY, "it was, a moment ago"
            sequence.holds_adapter = True
        if self._loading.pop(sequence.request_id, None) is None:
            self._queue.take(sequence, _prompt_cost(sequence))
        sequence.kv = self.kv.allocate(sequence.limit_tokens)
        sequence.admitted_seconds = current.now_seconds
        if sequence.load_began_seconds is not None:
            sequence.load_seconds = current.now_seconds - sequence.load_began_seconds
        sequence.phase = Phase.RUNNING
        del self.waiting[sequence.request_id]
        self.running[sequence.request_id] = sequence
        self._pace.count(current.now_seconds)
        for earlier in current.passed_over:
            earlier.overtaken += 1
        current.admitted.append(sequence)


def _prompt_cost(sequence: Sequence) -> int:
    return PROMPT_WEIGHT * sequence.prompt_tokens
