"""Who runs in the next step: admission and the shape of the batch. Pure logic, no torch.

First come, first served, with two exceptions that keep the batch full: a request whose adapter is
being loaded lets all others pass, and one for whose adapter there is no memory (all of it in use by
running sequences) may be overtaken `MAX_OVERTAKES` times; then nobody passes it until it has its place.
Each sequence holds its whole KV range from admission to its end, so that nothing that runs is ever
preempted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from finetuned_service.engine.allocator import Range, RangeAllocator
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.prefix_cache import PrefixCache, PrefixCopy
from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import FinetunedError

MAX_OVERTAKES = 64
PREPARED_AHEAD = 4
"""Requests next in the queue whose adapters are loaded while they wait for a place."""


class Readiness(Enum):
    """The answer to an attempt to hold an adapter."""

    READY = auto()
    """Held and in the serving layout."""
    LOADING = auto()
    """On its way; ask again."""
    NO_MEMORY = auto()
    """It would fit, but what is there is in use."""


class AdapterGate(Protocol):
    """What the scheduler needs of `residency.py`."""

    def begin_pass(self) -> None:
        """A pass over the queue begins; what it asks for first is not taken away for what it asks later."""
        ...

    def try_hold(self, handle: AdapterHandle) -> Readiness:
        """Hold the adapter if it is ready; else begin to make it so, if there is memory for it.

        Raises:
            FinetunedError: if it can never be applied.
        """
        ...

    def prepare(self, handle: AdapterHandle) -> None:
        """As `try_hold`, without holding."""
        ...

    def release(self, handle: AdapterHandle) -> None:
        """Undo one `try_hold` that was READY."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` tokens of a sequence, from `sequence.computed_tokens` on, for the next forward."""

    sequence: Sequence
    rows: int

    @property
    def completes(self) -> bool:
        """Its last row is the newest token: its logits choose the next one."""
        return self.rows == self.sequence.pending_tokens


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
    ) -> None:
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens
        self._adapters = adapters
        self.kv = RangeAllocator(kv_capacity_tokens, kv_block_tokens)
        self.prefixes = PrefixCache(self.kv, kv_block_tokens) if shares_prefixes else None
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}

    def enqueue(self, sequence: Sequence) -> None:
        self.waiting[sequence.request_id] = sequence

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
        admission = Admission([], [])
        passed_over: list[Sequence] = []
        ahead = 0
        blocked = False
        self._adapters.begin_pass()
        for sequence in list(self.waiting.values()):
            blocked = blocked or not self._has_room(sequence)
            try:
                if blocked:
                    ahead += 1
                    self._prepare(sequence)
                elif (readiness := self._try_start(sequence, now_seconds)) is Readiness.READY:
                    admission.admitted.append(sequence)
                    for earlier in passed_over:
                        earlier.overtaken += 1
                elif readiness is Readiness.NO_MEMORY:
                    passed_over.append(sequence)
                    blocked = sequence.overtaken >= MAX_OVERTAKES
            except FinetunedError as error:
                self.end(sequence)
                admission.refused.append(Refusal(sequence, error))
            if ahead == PREPARED_AHEAD:
                break
        return admission

    def share_prefixes(self, copy: Callable[[PrefixCopy], None]) -> int:
        """Before a step: copy what prompts that have not begun share with others; returns how many tokens."""
        fresh = [sequence for sequence in self.running.values() if not sequence.computed_tokens]
        return sum(self.begin_at(sequence, len(sequence.tokens) - 1, copy) for sequence in fresh)

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
        """One row for each decoding sequence, then prompt chunks in order of admission, within the budget."""
        decoding: list[Chunk] = []
        prefill: list[Chunk] = []
        budget_tokens = self._max_prefill_tokens
        for sequence in self.running.values():
            if sequence.new_tokens:
                decoding.append(Chunk(sequence, 1))
            elif budget_tokens and not (
                sequence.whole and prefill and sequence.pending_tokens > budget_tokens
            ):
                # One that is whole may exceed the budget alone: contexts of encoders are short.
                rows = (
                    sequence.pending_tokens if sequence.whole else min(sequence.pending_tokens, budget_tokens)
                )
                prefill.append(Chunk(sequence, rows))
                budget_tokens = max(0, budget_tokens - rows)
        return decoding + prefill

    def _has_room(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._max_running:
            return False
        if self.prefixes is not None:
            return self.prefixes.make_room(sequence.limit_tokens)
        return self.kv.can_allocate(sequence.limit_tokens)

    def _prepare(self, sequence: Sequence) -> None:
        """Its turn comes soon: its adapter is loaded while it waits."""
        if sequence.adapter is not None:
            self._adapters.prepare(sequence.adapter)

    def _try_start(self, sequence: Sequence, now_seconds: float) -> Readiness:
        if sequence.adapter is not None:
            readiness = self._adapters.try_hold(sequence.adapter)
            if readiness is not Readiness.READY:
                if sequence.load_began_seconds is None:
                    sequence.load_began_seconds = now_seconds
                return readiness
            sequence.holds_adapter = True
        sequence.kv = self.kv.allocate(sequence.limit_tokens)
        sequence.admitted_seconds = now_seconds
        if sequence.load_began_seconds is not None:
            sequence.load_seconds = now_seconds - sequence.load_began_seconds
        sequence.phase = Phase.RUNNING
        del self.waiting[sequence.request_id]
        self.running[sequence.request_id] = sequence
        return Readiness.READY
