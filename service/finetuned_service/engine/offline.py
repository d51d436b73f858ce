"""The engine without a process: the same loop, driven by the caller. For evaluation and for oracles."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import (
    AdapterHandle,
    Answer,
    Command,
    Event,
    Failed,
    FinishReason,
    Inspect,
    Residency,
    Sampling,
    SetResidency,
    Snapshot,
    Started,
    Submit,
    TokenLogprobs,
    Tokens,
)
from finetuned_service.engine.runner import Model
from finetuned_service.engine.sequence import Sequence as TokenSequence
from finetuned_service.errors import FinetunedError, ResourceExhausted, from_wire


@dataclass(slots=True)
class Completion:
    """How one request ended. `token_ids` are those up to the end, also if `error` cut them short."""

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    finish: FinishReason | None = None
    modules_changed: int = 0
    error: FinetunedError | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def take(self, event: Started | Tokens | Failed) -> None:
        """Add what an event of this request says."""
        match event:
            case Started(modules_changed=modules_changed):
                self.modules_changed = modules_changed
            case Tokens():
                self.token_ids.extend(event.token_ids)
                self.logprobs.extend(event.logprobs)
                self.finish = event.finish
            case Failed(error=error):
                self.error = from_wire(error)


class OfflineEngine:
    """Owns a loop over `model`; use as a context manager, or call `close`. Not thread-safe.

    `config` gives the sizes; its `base_directory` is not looked at, nor are its `threads` on the plain path,
    where they are PyTorch's.
    """

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self._device = model.device
        self._loop = EngineLoop(model, config)

    def warm(self) -> None:
        """Prepare whatever makes later steps faster, as an engine does that has nothing to compute: on a GPU the graphs of
        what has come so far and of what is usual.
        """
        while self._loop.runner.warm():
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the adapter loader's thread."""
        self._loop.close()

    def generate(self, requests: Sequence[Submit]) -> list[Completion]:
        """All replies, in the order of the requests, computed together in one continuous batch.

        Args:
            requests: with ids that are unique among them. One that fails carries its error; the others
                go on.
        """
        completions = {request.request_id: Completion() for request in requests}
        if len(completions) != len(requests):
            raise ValueError("request ids must be unique")
        self.deliver(*requests)
        while not all(completion.ended for completion in completions.values()):
            for event in self.step():
                if isinstance(event, Started | Tokens | Failed):
                    completions[event.request_id].take(event)
        return list(completions.values())

    def deliver(self, *commands: Command) -> None:
        """Commands for the next `step`; together with it, the loop by hand."""
        for command in commands:
            self._loop.deliver(command)

    def step(self) -> list[Event]:
        """One step of the loop; waits if there is nothing to do."""
        return self._loop.step()

    def inspect(self, *, verify_base: bool = False) -> Snapshot:
        """What the engine holds now. No request may be running."""
        self.deliver(Inspect(0, verify_base=verify_base))
        snapshot = self._await_answer().snapshot
        assert snapshot is not None, "Inspect is always answered with a snapshot"
        return snapshot

    def logits(self, token_ids: Sequence[int], adapter: AdapterHandle | None = None) -> Tensor:
        """Logits `[T, vocabulary]` float32, on the CPU, after each token of one row, computed in prompt chunks.

        Raises:
            FinetunedError: if the adapter cannot be applied.
        """
        return torch.cat(list(self._chunk_logits(token_ids, adapter))).cpu()

    def score(
        self,
        rows: Sequence[Sequence[int]],
        adapter: AdapterHandle | None = None,
        firsts: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """For each row of T tokens the natural log-probabilities `[T - first]` float32 of its tokens from `first` on.

        Args:
            rows: token ids.
            adapter: None for the plain base.
            firsts: 1 or more for each row; None is 1 for all. What rows have in common before it is computed once.

        Raises:
            FinetunedError: if the adapter cannot be applied.
        """
        return [
            self._score_row(row, first, adapter)
            for row, first in zip(rows, firsts or [1] * len(rows), strict=True)
        ]

    def _score_row(self, row: Sequence[int], first: int, adapter: AdapterHandle | None) -> Tensor:
        following = torch.tensor(list(row[first:]), device=self._device)
        parts: list[Tensor] = []
        done = 0
        for logits in self._chunk_logits(row, adapter, first - 1):
            targets = following[done : done + logits.shape[0]]
            logprobs = logits[: targets.shape[0]].log_softmax(dim=-1)
            parts.append(logprobs.gather(1, targets[:, None])[:, 0])
            done += logits.shape[0]
        return torch.cat(parts).cpu()

    def _chunk_logits(
        self, token_ids: Sequence[int], adapter: AdapterHandle | None, first_row: int = 0
    ) -> Iterator[Tensor]:
        """Of the rows from `first_row` on; by chunks, so that the logits of a long row are never all in memory."""
        scheduler, runner = self._loop.scheduler, self._loop.runner
        submit = Submit(0, tuple(token_ids), adapter, Sampling(max_new_tokens=1))
        sequence = TokenSequence(submit, len(token_ids), 0.0, list(token_ids))
        sequence.kv = scheduler.allocate_kv(len(token_ids))
        if sequence.kv is None:
            raise ResourceExhausted(f"a row has {len(token_ids)} tokens; the KV cache is too small for it")
        try:
            with self._held(adapter) as place:
                scheduler.begin_at(sequence, first_row, runner.copy_kv)
                while sequence.pending_tokens:
                    rows = min(sequence.pending_tokens, self._loop.max_prefill_tokens)
                    before = first_row - sequence.computed_tokens
                    if before > 0:
                        rows = min(rows, before)
                    step = runner.run([Chunk(sequence, rows)], lambda _: place, all_logits=before <= 0)
                    sequence.computed_tokens += rows
                    if before <= 0:
                        yield step.logits.float()
        finally:
            scheduler.end(sequence, sound=not sequence.pending_tokens)

    @contextmanager
    def _held(self, adapter: AdapterHandle | None) -> Generator[Any]:
        """The adapter's place, loaded if it must be, and kept while the block runs."""
        if adapter is None:
            yield None
            return
        self.deliver(SetResidency(0, adapter, Residency.DEVICE))
        answer = self._await_answer()
        if answer.error is not None:
            raise from_wire(answer.error)
        if self._loop.residency.try_hold(adapter) is not Readiness.READY:
            raise ResourceExhausted(
                f"adapter {adapter.digest} was evicted before it could be used; try again"
            )
        try:
            yield self._loop.residency.place_of(adapter)
        finally:
            self._loop.residency.release(adapter)

    def _await_answer(self) -> Answer:
        while True:
            for event in self.step():
                if isinstance(event, Answer):
                    return event
