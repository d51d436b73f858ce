"""Runs ServeAdapter calls: which weights, which tokens, and the events of the answer.

Knows no gRPC and no torch. The version that a name means is decided once, when the call arrives; a
call runs to its end on that version, whatever happens to aliases meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.messages import AdapterHandle, Started
from finetuned_service.errors import AdapterIncompatible, Internal
from finetuned_service.metrics import Metrics
from finetuned_service.serving.checks import Prompt, check_call, fit_prompt, sampling_for
from finetuned_service.serving.reply import Reply
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
)
from finetuned_service.text.stream import TextStream
from finetuned_service.text.tokenizer import BaseTokenizer


@dataclass(frozen=True, slots=True)
class Serving:
    """Serves one resident base and any number of its adapters."""

    engine: EngineClient
    registry: AdapterRegistry
    tokenizer: BaseTokenizer
    base: BaseManifest
    context_tokens: int
    """Prompt and reply together: the base's context or the KV cache, whichever is smaller."""
    replica: str
    metrics: Metrics

    async def serve(self, call: ServeCall) -> AsyncGenerator[ServeEvent]:
        """ServedBy, then deltas of all inputs as they come, then Done.

        Raises:
            InvalidField, PromptTooLong: before anything is queued.
            NotFound, AdapterIncompatible: the weights asked for are not to be had.
            QueueFull, Unavailable: from the engine.
        """
        check_call(call, self.context_tokens)
        version = await self._version(call)
        prompts = [self._prompt(call, i) for i in range(len(call.inputs))]
        self.metrics.tokens.labels("prompt").inc(sum(len(p.token_ids) for p in prompts))
        replies = [
            Reply(
                input=i,
                truncated_tokens=prompt.truncated_tokens,
                text=TextStream(self.tokenizer, call.generation.stop),
                metrics=self.metrics,
                model="base" if version is None else "adapter",
            )
            for i, prompt in enumerate(prompts)
        ]
        told = False
        async with aclosing(_merged([self._follow(call, version, prompts, r) for r in replies])) as events:
            async for event in events:
                if isinstance(event, Delta):
                    yield event
                elif not told:
                    told = True
                    yield self._served_by(version, event)
        yield _done(prompts, replies)

    def _follow(
        self, call: ServeCall, version: AdapterVersion | None, prompts: Sequence[Prompt], reply: Reply
    ) -> AsyncGenerator[Started | Delta]:
        prompt = prompts[reply.input]
        handle = None if version is None else handle_of(version)
        sampling = sampling_for(call.generation, prompt, reply.input)
        return reply.follow(self.engine.submit(prompt.token_ids, handle, sampling))

    async def _version(self, call: ServeCall) -> AdapterVersion | None:
        if call.adapter is None:
            return None
        version = await asyncio.to_thread(self.registry.resolve, call.adapter)
        check_compatible(version, self.base)
        return version

    def _prompt(self, call: ServeCall, index: int) -> Prompt:
        match call.inputs[index]:
            case Conversation(messages):
                token_ids = self.tokenizer.encode_conversation(messages)
            case Content(text):
                token_ids = self.tokenizer.encode(text, add_special_tokens=True)
        return fit_prompt(token_ids, call.generation, self.context_tokens, f"inputs[{index}]")

    def _served_by(self, version: AdapterVersion | None, started: Started) -> ServedBy:
        if version is None:
            return ServedBy("", "", self.base.name, self.base.digest, 0, self.replica)
        manifest = version.manifest
        if started.modules_changed != manifest.modules:
            raise Internal(
                f"the adapter changes {started.modules_changed} modules instead of {manifest.modules}; "
                "nothing was answered"
            )
        return ServedBy(
            version.name,
            manifest.digest,
            self.base.name,
            self.base.digest,
            started.modules_changed,
            self.replica,
        )


def handle_of(version: AdapterVersion) -> AdapterHandle:
    """The version as the engine knows it: by its digest."""
    return AdapterHandle(version.manifest.digest, str(version.directory))


def incompatible_reason(version: AdapterVersion, base: BaseManifest) -> str:
    """Why this base cannot serve the version, or ""."""
    if version.manifest.base_digest == base.digest:
        return ""
    return f"it was made for the base {version.manifest.base_digest}; this server holds {base.digest}"


def check_compatible(version: AdapterVersion, base: BaseManifest) -> None:
    """Refuse a version that was made for another base.

    Raises:
        AdapterIncompatible: naming both digests.
    """
    reason = incompatible_reason(version, base)
    if reason:
        raise AdapterIncompatible(
            f"{version.name} cannot be served: {reason}. Train it again on this base",
            metadata={
                "adapter_base_digest": version.manifest.base_digest,
                "server_base_digest": base.digest,
            },
        )


def _done(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Done:
    outcomes: list[Outcome] = []
    for reply in replies:
        if reply.outcome is None:
            raise Internal.opaque()
        outcomes.append(reply.outcome)
    timings: list[Timing] = [reply.timing for reply in replies]
    return Done(
        outcomes=tuple(outcomes),
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        timing=max(timings, key=lambda timing: timing.total),
    )


async def _merged(
    sources: Sequence[AsyncGenerator[Started | Delta]],
) -> AsyncGenerator[Started | Delta]:
    """Events of several replies as they come; the first failure ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for event in only:
                yield event
        return
    queue: asyncio.Queue[Started | Delta | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[Started | Delta]) -> None:
        try:
            async with aclosing(source) as events:
                async for event in events:
                    queue.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - handed to the caller's own task
            queue.put_nowait(error)
        queue.put_nowait(None)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(pumps)
        while running:
            event = await queue.get()
            if event is None:
                running -= 1
            elif isinstance(event, Exception):
                raise event
            else:
                yield event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
