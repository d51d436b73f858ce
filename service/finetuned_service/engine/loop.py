"""The engine's step: commands in, one forward for all running sequences, events out.

Knows no process and no pipe: `process.py` and `offline.py` feed it. Everything here belongs to one
thread; only `deliver` may be called from others.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from finetuned_service.bases.device import usual_prefill_tokens
from finetuned_service.engine.arrivals import Arrivals
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.counts import EngineCounts
from finetuned_service.engine.deadlines import expiry
from finetuned_service.engine.deltas import Deltas
from finetuned_service.engine.grammars import Compiled, GrammarThread
from finetuned_service.engine.loader import LoaderThreads
from finetuned_service.engine.memory import Loaded
from finetuned_service.engine.messages import (
    Answer,
    Cancel,
    Command,
    Event,
    Failed,
    Inspect,
    LeaveTime,
    SetResidency,
    Shutdown,
    Snapshot,
    Started,
    Submit,
)
from finetuned_service.engine.replies import Replies, encoded, limit_tokens
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.engine.residency_calls import ResidencyCalls
from finetuned_service.engine.rest import Rest
from finetuned_service.engine.runner import Model, StepLogits
from finetuned_service.engine.scheduler import Scheduler
from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import (
    DeadlineExceeded,
    FinetunedError,
    Internal,
    Unavailable,
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Verified:
    """The base's digest was recomputed beside the engine."""

    call_id: int
    base_digest: str


Delivery = Command | Loaded[Any] | Compiled | _Verified


class EngineLoop:
    """One base, its adapters, and the sequences that run on it."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self._inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._model = model
        self._events: list[Event] = []
        self._stop_seconds: float | None = None
        self._counts = EngineCounts()
        self.rest = Rest()
        self.runner = model.open(config)
        self.max_prefill_tokens = config.max_prefill_tokens or usual_prefill_tokens(model.device)
        self._loader = LoaderThreads(self._inbox.put, gives_way=self.runner.idle_work_proceeds)
        self.residency = ResidencyManager[Any, Any](
            self.runner.memory, self._loader, config.host_budget_bytes
        )
        self._residency_calls = ResidencyCalls(self.residency, self._snapshot)
        self.scheduler = Scheduler(
            max_running=config.max_running_sequences,
            max_prefill_tokens=self.max_prefill_tokens,
            kv_capacity_tokens=config.kv_capacity_tokens,
            adapters=self.residency,
            kv_block_tokens=self.runner.kv_block_tokens,
            shares_prefixes=self.runner.shares_prefixes,
            kept_prefixes=config.kept_prefixes,
        )
        self._grammars = GrammarThread(model, self._inbox.put)
        self._arrivals = Arrivals(
            self._grammars.begin, self.scheduler.find, shares_prefixes=self.runner.shares_prefixes
        )
        self._replies = Replies(model.end_token_ids, model.device, self.runner.draw)
        self._deltas = Deltas()

    def deliver(self, delivery: Delivery) -> None:
        """Hand a command to the engine; the next step takes it. Any thread may call this."""
        self._inbox.put(delivery)

    @property
    def stopped(self) -> bool:
        """A Shutdown has come, and nothing runs any more or its time is over."""
        if self._stop_seconds is None:
            return False
        return not self._busy or time.monotonic() >= self._stop_seconds

    @property
    def _busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or any(self._arrivals))

    def step(self) -> list[Event]:
        """Take what was delivered, admit, compute for all that run, tell what happened.

        With nothing to compute or tell it makes later steps faster, or waits for the next delivery.
        """
        while not self._inbox.empty():
            self._take(self._inbox.get())
        self._end_expired()
        self._admit()
        self._counts.add("prefix_tokens_reused", self.scheduler.share_prefixes(self.runner.copy_kv))
        chunks = self.scheduler.plan_step()
        if chunks:
            self.scheduler.charge(chunks)
            self._compute(chunks)
            self.rest.computed()
        elif not (self._events or self._warmed()):
            self._wait()
        events, self._events = self._events, []
        return events

    def abandon(self) -> list[Event]:
        """End what is left; its clients need not wait for what `close` waits for."""
        enqueued = [*self.scheduler.running.values(), *self.scheduler.waiting.values()]
        for sequence in [*self._arrivals, *enqueued]:
            self._fail(sequence, Unavailable("the engine stopped; try again", retry_after_seconds=1.0))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the threads, the loader's after its load; the engine cannot be used after it."""
        self._loader.close()
        self._grammars.close()
        self.runner.close()

    def _warmed(self) -> bool:
        """Whether the moment was used to prepare something; what comes meanwhile waits for that one thing only."""
        return not self._busy and self._stop_seconds is None and self.runner.warm()

    def _wait(self) -> None:
        ends = [at for at in (self._stop_seconds, self.scheduler.next_deadline_seconds) if at is not None]
        timeout_seconds = max(0.0, min(ends) - time.monotonic()) if ends else None
        try:
            self._take(self._inbox.get(timeout=timeout_seconds))
        except queue.Empty:
            return

    def _take(self, delivery: Delivery) -> None:
        match delivery:
            case Submit():
                self._submit(delivery)
            case Cancel(request_id=request_id):
                self._cancel(request_id)
            case SetResidency():
                self._events += self._residency_calls.take(delivery)
            case Inspect():
                self._inspect(delivery)
            case _Verified(call_id=call_id, base_digest=base_digest):
                self._events.append(Answer(call_id, self._snapshot(base_digest)))
            case LeaveTime(share=share):
                self.rest.share = share
            case Shutdown(grace_seconds=grace_seconds):
                self._stop_seconds = time.monotonic() + grace_seconds
            case Loaded():
                self._finish_load(delivery)
            case Compiled():
                self._take_grammar(delivery)

    def _inspect(self, asked: Inspect) -> None:
        if asked.verify_base:
            threading.Thread(target=self._verify, args=(asked.call_id,), daemon=True).start()
        else:
            self._events.append(Answer(asked.call_id, self._snapshot()))

    def _submit(self, submit: Submit) -> None:
        try:
            if self._stop_seconds is not None:
                raise Unavailable("the engine is stopping; try again", retry_after_seconds=1.0)
            limit = limit_tokens(submit, self._model, self.scheduler.kv.capacity)
            sequence = Sequence(submit, limit, time.monotonic(), list(submit.prompt_token_ids))
            self.scheduler.check_deadline(sequence, sequence.arrived_seconds)
            if not submit.sampling.grammar:
                self._replies.begin(sequence)
        except FinetunedError as error:
            if isinstance(error, DeadlineExceeded):
                self._counts.add("deadlines_estimate")
            self._events.append(Failed(submit.request_id, error.to_wire()))
            return
        except Exception as error:  # noqa: BLE001 - who is at fault fails alone, the engine goes on
            self._events.append(Failed(submit.request_id, self._fault(error).to_wire()))
            return
        self._enqueue(self._arrivals.add(sequence))

    def _cancel(self, request_id: int) -> None:
        sequence = self.scheduler.find(request_id) or self._arrivals.find(request_id)
        if sequence is not None:
            self._end(sequence, sound=True)

    def _take_grammar(self, compiled: Compiled) -> None:
        sequence = self._arrivals.find(compiled.request_id)
        if sequence is None:
            return
        if compiled.error is not None:
            self._fail(sequence, compiled.error)
            return
        self._replies.begin(sequence, compiled.matcher)
        self._enqueue(self._arrivals.grammar_ready(compiled.request_id))

    def _enqueue(self, arrived: list[Sequence]) -> None:
        for sequence in arrived:
            self.scheduler.enqueue(sequence)

    def _end_expired(self) -> None:
        for sequence in self.scheduler.expired(time.monotonic()):
            running = sequence.phase is Phase.RUNNING
            self._counts.add("deadlines_running" if running else "deadlines_queue")
            error = expiry(sequence)
            self._fail(sequence, error, sound=True)

    def _admit(self) -> None:
        admission = self.scheduler.admit(time.monotonic())
        for refusal in admission.refused:
            self._fail(refusal.sequence, refusal.error)
        for sequence in admission.admitted:
            waited_seconds = sequence.admitted_seconds - sequence.arrived_seconds
            modules = self.residency.modules_of(sequence.adapter) if sequence.adapter else 0
            self._events.append(
                Started(
                    sequence.request_id,
                    modules,
                    queue_seconds=waited_seconds - sequence.load_seconds,
                    load_seconds=sequence.load_seconds,
                )
            )

    def _compute(self, chunks: list[Chunk]) -> None:
        began = time.monotonic()
        try:
            step = self.runner.run(chunks, self._place_of)
        except torch.AcceleratorError:
            raise  # a GPU computes nothing more for a process that it has told of an error: another one is started
        except Exception as error:  # noqa: BLE001 - who is at fault fails alone, the engine goes on
            self._counts.add("step_failures")
            fault = self._fault(error)
        else:
            self._tell(step, chunks, began)
            return
        # Out here the error is gone, and with it what the step had in memory: perhaps there was not enough.
        if len(chunks) == 1:
            self._fail(chunks[0].sequence, fault)
            return
        # Nobody knows whose row it was; keys and values computed twice are the same.
        for chunk in chunks:
            self._compute([chunk])

    def _tell(self, step: StepLogits, chunks: list[Chunk], began: float) -> None:
        now = time.monotonic()
        for chunk in chunks:
            kind = "decode_tokens" if chunk.sequence.new_tokens else "prefill_tokens"
            self._counts.add(kind, chunk.rows)
            chunk.sequence.computed_tokens += chunk.rows
        self._tell_tokens(step, now)
        self._tell_encoded(step, now)
        self._counts.add_step(chunks, time.monotonic() - began)

    def _tell_tokens(self, step: StepLogits, now: float) -> None:
        for sequence, chosen in zip(step.chosen, self._replies.choose(step), strict=True):
            try:
                tokens = self._replies.extend(sequence, chosen, now)
            except FinetunedError as error:
                self._fail(sequence, error)
                continue
            except Exception as error:  # noqa: BLE001 - a row that cannot be sampled fails alone
                self._fail(sequence, self._fault(error))
                continue
            self._events += self._deltas.take(sequence, tokens)
            self._enqueue(self._arrivals.prompt_computed(sequence))
            if tokens.finish is not None:
                self._end(sequence, sound=True)

    def _tell_encoded(self, step: StepLogits, now: float) -> None:
        for sequence, rows in step.encoded:
            try:
                event = encoded(sequence, rows, now)
            except FinetunedError as error:
                self._fail(sequence, error)
                continue
            except Exception as error:  # noqa: BLE001 - a row that cannot be told fails alone
                self._fail(sequence, self._fault(error))
                continue
            self._events.append(event)
            self._end(sequence)

    def _place_of(self, sequence: Sequence) -> Any:
        return self.residency.place_of(sequence.adapter) if sequence.adapter else None

    def _end(self, sequence: Sequence, *, sound: bool = False) -> None:
        self.scheduler.end(sequence, sound=sound)
        self._replies.forget(sequence)
        self._deltas.rest(sequence)  # of what was cancelled: nobody wants to know
        self._enqueue(self._arrivals.left(sequence))

    def _fail(self, sequence: Sequence, error: FinetunedError, *, sound: bool = False) -> None:
        self._events += self._deltas.rest(sequence)
        self._end(sequence, sound=sound)
        self._events.append(Failed(sequence.request_id, error.to_wire()))

    def _fault(self, cause: Exception) -> Internal:
        fault = Internal.opaque()
        _log.error("engine_step_failed", exc_info=cause, **fault.metadata)
        return fault

    def _finish_load(self, loaded: Loaded[Any]) -> None:
        self.residency.finish(loaded)
        self._events += self._residency_calls.loaded(loaded)
        if loaded.error is not None:
            for sequence in list(self.scheduler.waiting.values()):
                if sequence.adapter is not None and sequence.adapter.digest == loaded.digest:
                    self._fail(sequence, loaded.error)

    def _verify(self, call_id: int) -> None:
        self._inbox.put(_Verified(call_id, self._model.fingerprint()))

    def _queue_age_seconds(self) -> float:
        oldest = next(iter(self.scheduler.waiting.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.arrived_seconds

    def _snapshot(self, base_digest: str = "") -> Snapshot:
        return Snapshot(
            running_sequences=len(self.scheduler.running),
            waiting_sequences=len(self.scheduler.waiting) + sum(1 for _ in self._arrivals),
            kv_tokens_used=self.scheduler.kv_tokens_used,
            kv_tokens_capacity=self.scheduler.kv.capacity,
            base_bytes=self._model.size_bytes,
            kv_bytes=self.runner.kv_bytes,
            adapters=self.residency.snapshot(),
            base_digest=base_digest,
            counters={
                **self._counts.counters(),
                "adapter_drains": float(self.scheduler.drains),
                "adapter_loads": float(self.residency.loads),
                "adapter_evictions": float(self.residency.evictions),
                "host_evictions": float(self.residency.host_evictions),
                "load_seconds": self.residency.load_seconds,
                "load_failures": float(self.residency.load_failures),
            },
            histograms={
                **self._counts.histograms(),
                "read_seconds": self.residency.read_seconds.read(),
                "fill_seconds": self.residency.fill_seconds.read(),
            },
            waiting_adapters=tuple(
                dict.fromkeys(s.adapter.digest for s in self.scheduler.waiting.values() if s.adapter)
            ),
            waiting_tenants=self.scheduler.waiting_tenants,
            queue_age_seconds=self._queue_age_seconds(),
        )
