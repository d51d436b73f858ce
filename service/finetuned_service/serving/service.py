"""Runs ServeAdapter calls: which weights, which tokens, and the events of the answer.

Knows no gRPC and no torch. The version that a name means is decided once, when the call arrives; a
call runs to its end on that version, whatever happens to aliases meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.messages import AdapterHandle, Started
from finetuned_service.engine.stream import EngineStream
from finetuned_service.errors import AdapterIncompatible, Internal
from finetuned_service.metrics import ServerMetrics
from finetuned_service.names import AdapterSelector
from finetuned_service.serving.abilities import check_base_can
from finetuned_service.serving.checks import Prompt, check_call, fit_prompt, grammar_of, sampling_for
from finetuned_service.serving.merge import merged
from finetuned_service.serving.reply import Reply
from finetuned_service.serving.residents import Residents
from finetuned_service.serving.values import (
    Content,
    Conversation,
    Delta,
    Done,
    Outcome,
    ServeCall,
    ServedBy,
    ServeEvent,
    Timing,
    Truncation,
)
from finetuned_service.telemetry.logs import logger
from finetuned_service.text.stream import TextStream
from finetuned_service.text.tokenizer import BaseTokenizer

_LOG = logger("serving")

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a call comes to: its weights, prompts and grammar."""

    version: AdapterVersion | None
    prompts: Sequence[Prompt]
    grammar: str


@dataclass(frozen=True, slots=True)
class Serving:
    """Serves one resident base and any number of its adapters."""

    engine: EngineClient
    registry: AdapterRegistry
    tokenizer: BaseTokenizer | None
    """None for bases that take no text."""
    base: BaseManifest
    context_tokens: int
    """Prompt and reply together: the base's context or the KV cache, whichever is smaller."""
    replica: str
    metrics: ServerMetrics
    residents: Residents

    async def serve(self, call: ServeCall) -> AsyncGenerator[ServeEvent]:
        """ServedBy, then deltas of all inputs as they come, then Done.

        Raises:
            InvalidField, PromptTooLong: before anything is queued.
            NotFound, AdapterIncompatible: the weights asked for are not to be had.
            QueueFull, Unavailable, DeadlineExceeded: from the engine.
        """
        arrived = time.perf_counter()
        check_base_can(self.base, "generate")
        check_call(call, self.context_tokens, self._tokenizer.vocabulary_size)
        # All wait or compute: the store's disk, a tokenizer over megabytes of prompts, a large schema.
        prepared = await asyncio.to_thread(self._prepare, call)
        version, prompts = prepared.version, prepared.prompts
        replies = [
            Reply(
                input=i,
                sample=sample,
                prompt_tokens=len(prompt.token_ids),
                truncated_tokens=prompt.truncated_tokens,
                text=TextStream(self._tokenizer, call.generation.stop, call.generation.min_tokens or 0),
                metrics=self.metrics,
                model="base" if version is None else "adapter",
                arrived=arrived,
            )
            for i, prompt in enumerate(prompts)
            for sample in range(call.generation.samples)
        ]
        first_samples: dict[int, int] = {}
        following = [self._follow(call, prepared, reply, first_samples) for reply in replies]
        async with aclosing(self.run(version, following)) as events:
            async for event in events:
                yield event
        yield _done(prompts, replies)

    async def run(
        self, version: AdapterVersion | None, following: Sequence[AsyncGenerator[Started | Told]]
    ) -> AsyncGenerator[ServedBy | Told]:
        """The events of all sequences of a call as they come, after who serves them."""
        told = False
        running = nullcontext() if version is None else self.residents.running(version, len(following))
        async with running, aclosing(merged(following)) as events:
            async for event in events:
                if not isinstance(event, Started):
                    yield event
                    continue
                # Of every sequence, not only of the first: each was given its weights by itself.
                served_by = self._served_by(version, event)
                if not told:
                    told = True
                    yield served_by

    def _prepare(self, call: ServeCall) -> _Prepared:
        grammar = grammar_of(call.generation, drops_first_space=self._tokenizer.drops_first_space)
        version = self.resolve(call.adapter)
        return _Prepared(version, [self._prompt(call, i) for i in range(len(call.inputs))], grammar)

    def resolve(self, selector: AdapterSelector | None) -> AdapterVersion | None:
        """The version that a name means now; None for the plain base.

        Raises:
            NotFound, AdapterIncompatible: it is not to be had.
        """
        if selector is None:
            return None
        version = self.registry.resolve(selector)
        check_compatible(version, self.base)
        return version

    @property
    def _tokenizer(self) -> BaseTokenizer:
        assert self.tokenizer is not None, "bases that generate take text"
        return self.tokenizer

    def _prompt(self, call: ServeCall, index: int) -> Prompt:
        closing_tokens = 0
        match call.inputs[index]:
            case Conversation(messages):
                token_ids = self._tokenizer.encode_conversation(messages)
                if call.generation.truncation is Truncation.KEEP_START:
                    closing_tokens = self._tokenizer.closing_tokens(messages)
            case Content(text):
                token_ids = self._tokenizer.encode(text, add_special_tokens=True)
        return fit_prompt(token_ids, call.generation, self.context_tokens, f"inputs[{index}]", closing_tokens)

    def _follow(
        self, call: ServeCall, prepared: _Prepared, reply: Reply, first_samples: dict[int, int]
    ) -> AsyncGenerator[Started | Delta]:
        """`first_samples` has, for each input, the request that computes its prompt for all its samples."""
        prompt = prepared.prompts[reply.input]
        handle = None if prepared.version is None else handle_of(prepared.version)
        sampling = sampling_for(call.generation, prompt, reply.input, reply.sample, prepared.grammar)

        def submit() -> EngineStream:
            leader = first_samples.get(reply.input)
            stream = self.engine.submit(
                prompt.token_ids, handle, sampling, call.tenant, call.deadline_seconds, leader=leader
            )
            first_samples.setdefault(reply.input, stream.request_id)
            return stream

        return reply.follow(submit)

    def _served_by(self, version: AdapterVersion | None, started: Started) -> ServedBy:
        """The proof for a caller.

        Raises:
            Internal: the engine does not apply the version in full.
        """
        expected = 0 if version is None else version.manifest.modules
        if started.modules_changed != expected:
            raise Internal(
                f"{started.modules_changed} modules are changed instead of {expected}; the answer would not "
                "be the one that was asked for"
            )
        return ServedBy(
            "" if version is None else version.name,
            "" if version is None else version.manifest.digest,
            self.base.name,
            self.base.digest,
            started.modules_changed,
            self.replica,
        )


def handle_of(version: AdapterVersion) -> AdapterHandle:
    """The version as the engine knows it: by its digest."""
    return AdapterHandle(version.manifest.digest, str(version.directory))


def incompatible_reason(adapter_base_digest: str, base: BaseManifest) -> str:
    """Why this base cannot serve what was made for the base of that digest, or ""."""
    if adapter_base_digest == base.digest:
        return ""
    return f"it was made for the base {adapter_base_digest}; this server holds {base.name}, {base.digest}"


def check_compatible(version: AdapterVersion, base: BaseManifest) -> None:
    """Refuse a version that was made for another base.

    Raises:
        AdapterIncompatible: naming both digests and the way to a version that fits.
    """
    made_for, job = version.manifest.base_digest, version.manifest.lineage.job
    reason = incompatible_reason(made_for, base)
    if reason:
        remedy = (
            f"Train it again from its record with 'finetuned jobs rerun {job.rsplit('/', 1)[-1]}'"
            if job
            else "Train it, or import one, for this base"
        )
        raise AdapterIncompatible(
            f"{version.name} cannot be served: {reason}. {remedy}, or ask a server that holds its base",
            metadata={"adapter_base_digest": made_for, "server_base_digest": base.digest}
            | ({"job": job} if job else {}),
        )


def _done(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Done:
    outcomes: list[Outcome] = []
    for reply in replies:
        if reply.outcome is None:
            fault = Internal.opaque()
            _LOG.error("reply_without_end", input=reply.input, **fault.metadata)
            raise fault
        outcomes.append(reply.outcome)
    timings: list[Timing] = [reply.timing for reply in replies]
    return Done(
        outcomes=tuple(outcomes),
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        cached_tokens=sum(reply.cached_tokens for reply in replies if reply.sample == 0),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        timing=max(timings, key=lambda timing: timing.total),
    )
