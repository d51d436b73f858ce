"""Runs calls that encode: each input is computed in one step and answered whole. Knows no gRPC and no torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetuned_service.adapters.head import Head
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.engine.messages import Encode, Encoded, FinishReason, Started
from finetuned_service.errors import InvalidField, Violation
from finetuned_service.serving.abilities import check_base_can, check_weights_can
from finetuned_service.serving.checks import MAX_INPUTS
from finetuned_service.serving.encoded_values import (
    Classify,
    Embed,
    Embedding,
    EncodeCall,
    EncodeEvent,
    EncodeResult,
    TagTokens,
    TextPair,
)
from finetuned_service.serving.head_answers import classified, tagged
from finetuned_service.serving.inputs import Inputs, PreparedInput
from finetuned_service.serving.service import Serving, handle_of
from finetuned_service.serving.values import Content, Done, Outcome, Timing
from finetuned_service.vocabulary import Pooling

_Rows = NDArray[np.float32]


@dataclass(slots=True)
class _Reply:
    """One input in progress."""

    input: int
    prepared: PreparedInput
    text: str
    """Empty for images."""
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Serves one resident base that encodes, and its adapters."""

    serving: Serving
    inputs: Inputs
    pooling: Pooling
    """The base's own."""

    async def serve(self, call: EncodeCall) -> AsyncGenerator[EncodeEvent]:
        """ServedBy, then a result for each input as it comes, then Done.

        Raises:
            InvalidField, PromptTooLong: before anything is queued.
            NotFound, AdapterIncompatible: the weights asked for are not to be had.
            QueueFull, Unavailable: from the engine.
        """
        _check(call)
        check_base_can(self.serving.base, call.wanted.word)
        # Both wait or compute: the store's disk, and a tokenizer or a decoder of images.
        version, prepared = await asyncio.to_thread(self._prepare, call)
        replies = [
            _Reply(i, prepared[i], item.text if isinstance(item, Content) else "")
            for i, item in enumerate(call.inputs)
        ]
        following = [self._follow(call, version, reply) for reply in replies]
        async with aclosing(self.serving.run(version, following)) as events:
            async for event in events:
                yield event
        yield _done(replies)

    def _prepare(self, call: EncodeCall) -> tuple[AdapterVersion | None, list[PreparedInput]]:
        version = self.serving.resolve(call.adapter)
        check_weights_can(version, call.wanted)
        return version, [
            self.inputs.prepare(item, call.truncation, f"inputs[{i}]") for i, item in enumerate(call.inputs)
        ]

    async def _follow(
        self, call: EncodeCall, version: AdapterVersion | None, reply: _Reply
    ) -> AsyncGenerator[Started | EncodeResult]:
        model = "base" if version is None else "adapter"
        metrics, prepared = self.serving.metrics, reply.prepared
        handle = None if version is None else handle_of(version)
        end = "failed"
        try:
            started, encoded = await self.serving.engine.encode(
                prepared.token_ids,
                handle,
                self._wanted(call, version, prepared),
                call.tenant,
                prepared.pixels,
                call.deadline_seconds,
            )
            end = "end"
        except asyncio.CancelledError:
            end = "left"
            raise
        finally:
            metrics.sequences.labels(model, end).inc()
        metrics.queue_seconds.labels(model).observe(started.queue_seconds)
        if version is not None:
            metrics.adapter_wait_seconds.observe(started.load_seconds)
        metrics.prompt_tokens.observe(len(prepared.token_ids))
        metrics.tokens.labels("prompt", model).inc(len(prepared.token_ids))
        metrics.prefill_seconds.labels(model).observe(encoded.seconds)
        reply.timing = Timing(started.queue_seconds, started.load_seconds, encoded.seconds)
        yield started
        head = version.manifest.head if version else None
        yield self._result(call, head, reply, encoded)

    def _wanted(self, call: EncodeCall, version: AdapterVersion | None, prepared: PreparedInput) -> Encode:
        match call.wanted:
            case Embed(pooling=pooling):
                return Encode(pooling or self.pooling)
            case Classify():
                head = version.manifest.head if version else None
                second_start = prepared.text.second_start if prepared.text else 0
                return Encode((head.pooling if head else None) or self.pooling, second_start)
            case TagTokens():
                return Encode(None)

    def _result(self, call: EncodeCall, head: Head | None, reply: _Reply, encoded: Encoded) -> EncodeResult:
        rows: _Rows = np.frombuffer(encoded.data, dtype="<f4").reshape(-1, encoded.width)
        match call.wanted:
            case Embed(pooling=pooling, normalize=normalize):
                vector = _normalized(rows[0]) if normalize else rows[0]
                of_text = reply.prepared.pixels is None
                return Embedding(
                    reply.input, tuple(vector.tolist()), (pooling or self.pooling) if of_text else None
                )
            case Classify(top_k=top_k):
                return classified(reply.input, _described(head), rows[0], top_k)
            case TagTokens():
                return tagged(reply.input, _described(head), rows, reply.prepared.text, reply.text)


def _described(head: Head | None) -> Head:
    assert head is not None, "versions of these tasks have heads"
    return head


def _normalized(vector: _Rows) -> _Rows:
    """Scaled to length 1; one of length 0 stays."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _check(call: EncodeCall) -> None:
    found: list[Violation] = []
    if not 1 <= len(call.inputs) <= MAX_INPUTS:
        found.append(Violation("inputs", f"has {len(call.inputs)} inputs; allowed: 1 to {MAX_INPUTS}"))
    if isinstance(call.wanted, Classify) and call.wanted.top_k is not None and call.wanted.top_k < 1:
        found.append(Violation("classify.top_k", f"is {call.wanted.top_k}; allowed: at least 1, or unset"))
    if not isinstance(call.wanted, Classify):
        found += [
            Violation(
                f"inputs[{i}]", f"is a pair of texts; only classify takes pairs, not {call.wanted.word}"
            )
            for i, item in enumerate(call.inputs)
            if isinstance(item, TextPair)
        ]
    if found:
        raise InvalidField("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def _done(replies: Sequence[_Reply]) -> Done:
    return Done(
        outcomes=tuple(
            Outcome(FinishReason.END, truncated_tokens=reply.prepared.truncated_tokens) for reply in replies
        ),
        prompt_tokens=sum(len(reply.prepared.token_ids) for reply in replies),
        cached_tokens=0,
        completion_tokens=0,
        timing=max((reply.timing for reply in replies), key=lambda timing: timing.total),
    )
