"""Held-out rows answered and scored by the engine that serves: the plain base, an incumbent, the adapter.

What counts is what users will get, so nothing here computes with the training model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from finetuned_service.bases.lender import BORROWED
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import MIB, EngineConfig
from finetuned_service.engine.messages import AdapterHandle, Failed, Sampling, Submit, Tokens
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import from_wire
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.memory import MEMORY, free_unused_memory
from finetuned_service.jobs.pace import Stopped
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.specs import Baseline, EvaluationOptions
from finetuned_service.storage.files import write_atomically
from finetuned_service.tenancy.stored import directory_bytes
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Row
from finetuned_service.training.cuda import free_unused_device_memory
from finetuned_service.training.questions import Question, encode_prompt, encode_scored, matches
from finetuned_service.vocabulary import Metric, Value

Subject = Literal["baseline", "incumbent", "reference", "adapter"]
_KEPT_PREFIXES = 4
"""Questions of a baseline begin with the same instruction and examples."""
_KV_TOKENS = 32_768
"""Enough for 32 sequences of 1,000 tokens; longer ones wait for each other."""
_KV_GRANULE = 512
"""Room is allocated in blocks."""


_SPARE_ANSWER_TOKENS = 16
_ADAPTER_BYTES = 256 * MIB
"""Room for an adapter; twice its files where they are larger, since 16 bits may become 32."""


class Evaluated(Value):
    """What one subject did on the held-out rows."""

    subject: Subject
    metrics: tuple[Metric, ...]
    answers: tuple[str, ...] = ()
    """For the questions in their order; empty strings where none could be generated."""
    log_probabilities: tuple[float | None, ...] = ()
    """Of the supervised tokens of each scored row, summed, in nats; None where a row has no room in the context."""
    seconds: float = 0.0
    memory_bytes: int = 0
    """Of its own that the engine held which measured it."""


class _Kept(Value):
    key: str
    evaluated: Evaluated


class Scoring(Protocol):
    """Which rows are scored, and what the figures are."""

    def rows(self, tokenizer: BaseTokenizer, baseline: Baseline) -> list[EncodedRow]:
        """What the subject reads, after the prompt that it gets."""
        ...

    def metrics(
        self, rows: Sequence[EncodedRow], log_probabilities: Sequence[float | None], answers: Sequence[str]
    ) -> tuple[Metric, ...]:
        """Figures from what it made of them.

        Args:
            rows: those of `rows`.
            log_probabilities: of the supervised tokens of each, summed, in nats; None where a row has no room in
                the context.
            answers: to the questions.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenScoring:
    """The loss per supervised token and the share of exact answers."""

    scored_rows: Sequence[Row]
    asked: Sequence[Question]

    def rows(self, tokenizer: BaseTokenizer, baseline: Baseline) -> list[EncodedRow]:
        """See `Scoring`."""
        return [encode_scored(tokenizer, row, baseline) for row in self.scored_rows]

    def metrics(
        self, rows: Sequence[EncodedRow], log_probabilities: Sequence[float | None], answers: Sequence[str]
    ) -> tuple[Metric, ...]:
        """See `Scoring`."""
        metrics: list[Metric] = []
        scored = [pair for pair in zip(log_probabilities, rows, strict=True) if pair[0] is not None]
        if supervised := sum(row.supervised_tokens for _, row in scored):
            loss = -sum(value or 0.0 for value, _ in scored) / supervised
            metrics.append(Metric(name="loss", value=loss, higher_is_better=False))
        if answers:
            pairs = zip(answers, self.asked, strict=True)
            exact = sum(matches(answer, question.expected) for answer, question in pairs)
            metrics.append(Metric(name="exact_match", value=exact / len(answers), higher_is_better=True))
        return tuple(metrics)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates on one set of held-out rows, on one base.

    `scoring` says what is measured, `asked` are answered greedily.
    """

    tokenizer: BaseTokenizer
    base_directory: Path
    cache_directory: str
    compute: str
    """Which path computes, as `EngineConfig.compute`."""
    threads: int
    options: EvaluationOptions
    scoring: Scoring
    asked: Sequence[Question]
    report: ReportFunction
    stop: StopFlag
    device: str = "cpu"
    """As `EngineConfig.device`."""

    def evaluate_once(
        self, subject: Subject, adapter: AdapterHandle | None, kept: Path, task_digest: str
    ) -> Evaluated:
        """As `evaluate`, but what an earlier attempt at the task found is read from the file `kept`."""
        key = f"{task_digest} {adapter.digest if adapter else 'plain base'}"
        if kept.exists():
            found = _Kept.model_validate_json(kept.read_bytes())
            if found.key == key:
                return found.evaluated
        evaluated = self.evaluate(subject, adapter)
        BORROWED.refuse_lost()
        write_atomically(kept, _Kept(key=key, evaluated=evaluated).model_dump_json().encode())
        return evaluated

    def evaluate(self, subject: Subject, adapter: AdapterHandle | None = None) -> Evaluated:
        """Score the rows and answer the questions.

        Args:
            subject: the baseline gets its instruction and examples with every row, the others nothing.
            adapter: None for the plain base.

        Raises:
            Stopped: the process was asked to stop.
        """
        started = time.perf_counter()
        baseline = self.options.baseline if subject == "baseline" else Baseline()
        rows = self.scoring.rows(self.tokenizer, baseline)
        prompts = [encode_prompt(self.tokenizer, question, baseline) for question in self.asked]
        answers, log_probabilities, memory_bytes = self._measure(subject, adapter, prompts, rows)
        free_unused_memory()
        free_unused_device_memory()
        return Evaluated(
            subject=subject,
            metrics=self.scoring.metrics(rows, log_probabilities, answers),
            answers=tuple(answers),
            log_probabilities=tuple(log_probabilities),
            seconds=time.perf_counter() - started,
            memory_bytes=memory_bytes,
        )

    def _measure(
        self,
        subject: Subject,
        adapter: AdapterHandle | None,
        prompts: Sequence[list[int]],
        rows: Sequence[EncodedRow],
    ) -> tuple[list[str], list[float | None], int]:
        """Answers to the prompts, how likely the rows are, and the memory of the engine, which lives no longer than this."""
        before_bytes = MEMORY.look()
        model = load_model(
            self.base_directory,
            device=self.device,
            compute=self.compute,
            cache_directory=self.cache_directory,
        )
        self._tell_left_out(subject, rows, model.context_tokens)
        rooms = self._rooms(prompts, model.context_tokens)
        room_bytes = max(_ADAPTER_BYTES, 2 * directory_bytes(Path(adapter.directory)) if adapter else 0)
        config = EngineConfig(
            str(self.base_directory),
            threads=self.threads,
            kv_capacity_tokens=_kv_tokens(prompts, rooms, rows, model.context_tokens),
            # Of a job no more memory than its rows need: what is kept is touched, and stays so.
            kept_prefixes=_KEPT_PREFIXES,
            device_budget_bytes=room_bytes,
            host_budget_bytes=room_bytes,
        )
        with OfflineEngine(model, config) as engine:
            run = _Run(self, engine, subject, adapter, len(rows) + len(prompts))
            answers = run.answer(prompts, rooms)
            log_probabilities = run.score(rows, model.context_tokens)
            return answers, log_probabilities, max(0, MEMORY.look() - before_bytes)

    def _rooms(self, prompts: Sequence[list[int]], context_tokens: int) -> list[int]:
        """How many tokens the answer to each prompt may have; none where the context is full.

        An answer twice as long as the expected one cannot equal it, so it is not written to its end.
        """
        rooms: list[int] = []
        for question, prompt in zip(self.asked, prompts, strict=True):
            longest = 2 * len(self.tokenizer.encode(question.expected)) + _SPARE_ANSWER_TOKENS
            allowed = min(self.options.generation_max_tokens, longest)
            rooms.append(max(0, min(allowed, context_tokens - len(prompt))))
        return rooms

    def _tell_left_out(self, subject: Subject, rows: Sequence[EncodedRow], context_tokens: int) -> None:
        left_out = sum(len(row.token_ids) > context_tokens for row in rows)
        if left_out:
            text = (
                f"{left_out} of {len(rows)} held-out rows with the prompt of the {subject} are longer than the "
                f"context of {context_tokens} tokens: they are not in its loss. Show fewer or shorter examples"
            )
            self.report(Notice(severity="WARNING", text=text))


def _kv_tokens(
    prompts: Sequence[list[int]], rooms: Sequence[int], rows: Sequence[EncodedRow], context_tokens: int
) -> int:
    """A KV cache for what is computed, and no larger: on a GPU all of it is taken at once, and contexts are long."""
    lengths = [len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True)]
    scored = [len(row.token_ids) for row in rows if len(row.token_ids) <= context_tokens]
    longest = max((*lengths, *scored), default=1)
    wanted = max(longest, min(_KV_TOKENS, sum(lengths)))
    return -(-wanted // _KV_GRANULE) * _KV_GRANULE


class _Run:
    """One subject on one engine, with its progress."""

    def __init__(
        self,
        evaluator: Evaluator,
        engine: OfflineEngine,
        subject: Subject,
        adapter: AdapterHandle | None,
        total: int,
    ) -> None:
        self._evaluator, self._engine, self._adapter = evaluator, engine, adapter
        self._phase = "evaluating" if subject == "adapter" else subject
        self._total, self._done, self._started = total, 0, time.perf_counter()

    def answer(self, prompts: Sequence[list[int]], rooms: Sequence[int]) -> list[str]:
        """Greedy answers, all prompts in one continuous batch."""
        self._tell(None)
        tokens: list[list[int]] = [[] for _ in prompts]
        running: set[int] = set()
        for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
            if room > 0:
                running.add(index)
                self._engine.deliver(Submit(index, tuple(prompt), self._adapter, Sampling(room)))
        self._finish(len(prompts) - len(running))
        while running:
            ended: set[int] = set()
            for event in self._engine.step():
                if isinstance(event, Failed):
                    raise from_wire(event.error)
                if isinstance(event, Tokens):
                    tokens[event.request_id].extend(event.token_ids)
                    if event.finish is not None:
                        ended.add(event.request_id)
            running -= ended
            self._finish(len(ended))
        return [self._evaluator.tokenizer.decode(ids) for ids in tokens]

    def score(self, rows: Sequence[EncodedRow], context_tokens: int) -> list[float | None]:
        """The sum of log p over each row's supervised tokens, in nats; None where it does not fit the context."""
        sums: list[float | None] = []
        for row in rows:
            total: float | None = None
            if len(row.token_ids) <= context_tokens:
                places = [place for place, flag in enumerate(row.supervised) if flag]
                first = min(places, default=1)
                (log_probabilities,) = self._engine.score([row.token_ids], self._adapter, [first])
                marked = [place - first for place in places]
                total = float(log_probabilities[marked].double().sum())
            sums.append(total)
            self._finish(1)
        return sums

    def _finish(self, rows: int) -> None:
        if self._evaluator.stop.is_set():
            raise Stopped
        if not rows:
            return
        self._done += rows
        seconds_a_row = (time.perf_counter() - self._started) / self._done
        self._tell(seconds_a_row * (self._total - self._done))

    def _tell(self, eta_seconds: float | None) -> None:
        self._evaluator.report(
            Progress(phase=self._phase, step=self._done, total_steps=self._total, eta_seconds=eta_seconds)
        )
