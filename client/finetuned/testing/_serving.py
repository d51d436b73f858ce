"""ServingService of the fake server: the "model" repeats the last user turn and signs it.

A word is a token. Adapters answer `[redact@3] words of the prompt`, the plain base the words alone;
max_tokens and stop strings cut as a model's would; sampling settings are checked and change nothing. Samples
after the first end with their number, as in `(1)`. With a JSON schema or a regular expression the answer is the
prompt's own words, unsigned: a test puts there what it wants to read. What is not generate is answered by
`_encoding.py`.
"""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import final

import grpc

from finetuned._names import short
from finetuned.errors import FinetunedError, InvalidField, PromptTooLong
from finetuned.testing._encoding import encode
from finetuned.testing._generation import check_settings, deltas, reply, samples
from finetuned.testing._refusals import to_message
from finetuned.testing._store import (
    CONTEXT_TOKENS,
    MAX_BATCH_REQUESTS,
    MAX_CONSTRAINT_BYTES,
    MAX_REPLIES,
    MAX_SAMPLES,
    METHODS,
    REPLICA,
    Store,
    check_name,
)
from finetuned.testing._versions import check_served, resolve
from finetuned.v1 import common_pb2
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1.serving_service_pb2_grpc import ServingServiceServicer


@final
class FakeServing(ServingServiceServicer):
    def __init__(self, store: Store) -> None:
        self._store = store

    def ServeAdapter(
        self, request: pb.ServeAdapterRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ServeAdapterResponse]:
        yield from self._serve(request)

    def BatchServeAdapter(
        self, request: pb.BatchServeAdapterRequest, context: grpc.ServicerContext
    ) -> pb.BatchServeAdapterResponse:
        count = len(request.requests)
        if not 1 <= count <= MAX_BATCH_REQUESTS:
            raise InvalidField.one("requests", f"has {count} items; allowed: 1 to {MAX_BATCH_REQUESTS}")
        return pb.BatchServeAdapterResponse(
            items=[self._item(request.parent, one) for one in request.requests]
        )

    def _item(self, parent: str, request: pb.ServeAdapterRequest) -> pb.BatchItem:
        item = pb.BatchItem()
        request.parent = request.parent or parent
        try:
            deltas: dict[tuple[int, int], list[pb.Delta]] = {}
            for answer in self._serve(request):
                if answer.WhichOneof("event") == "started":
                    item.reply.served_by.CopyFrom(answer.started.served_by)
                elif answer.WhichOneof("event") == "done":
                    item.reply.done.CopyFrom(answer.done)
                elif answer.WhichOneof("event") == "result":
                    item.reply.results.append(answer.result)
                else:
                    deltas.setdefault((answer.delta.input, answer.delta.sample), []).append(answer.delta)
            if not item.reply.results:
                places = itertools.product(range(len(request.inputs)), range(samples(request.generate)))
                for place in places:
                    parts = deltas.get(place, [])
                    item.reply.texts.append("".join(part.text for part in parts))
                    tokens = item.reply.tokens.add()
                    for part in parts:
                        tokens.token_ids.extend(part.token_ids)
                        tokens.logprobs.extend(part.logprobs)
        except FinetunedError as error:
            item.error.CopyFrom(to_message(error))
        return item

    def _serve(self, request: pb.ServeAdapterRequest) -> Iterator[pb.ServeAdapterResponse]:
        check_name(request.parent, "tenants/{}", "parent")
        settings = _check(request)
        if request.WhichOneof("task") != "generate":
            yield from encode(request, self._served_by(request))
            return
        served_by = self._served_by(request)
        prompts = [_prompt(item) for item in request.inputs]
        done = pb.Done()
        yield pb.ServeAdapterResponse(started=pb.Started(served_by=served_by))
        signature = [f"[{short(served_by.adapter_version)}]"] if served_by.adapter_version else []
        for number, prompt in enumerate(prompts):
            done.usage.prompt_tokens += len(prompt.split())
            for sample in range(samples(settings)):
                words = prompt.split()
                if settings.WhichOneof("constraint") is None:
                    words = [*signature, *words, *([f"({sample})"] if sample else [])]
                words, outcome = reply(words, settings)
                for delta in deltas(words, number, sample, settings):
                    yield pb.ServeAdapterResponse(delta=delta)
                done.outcomes.append(outcome)
                done.usage.completion_tokens += len(words)
        done.timing.queue.FromMilliseconds(1)
        done.timing.prefill.FromMilliseconds(2)
        done.timing.decode.FromMilliseconds(3)
        yield pb.ServeAdapterResponse(done=done)

    def _served_by(self, request: pb.ServeAdapterRequest) -> pb.ServedBy:
        with self._store.lock:
            base = self._store.bases[self._store.resident]
            served_by = pb.ServedBy(base=base.name, base_digest=base.digest, replica=REPLICA)
            if request.WhichOneof("model") == "adapter":
                state, number = resolve(self._store, request.adapter, "adapter")
                version = state.versions[number]
                check_served(self._store, version)
                version.residency[0].residency = common_pb2.RESIDENCY_DEVICE
                served_by.adapter_version = version.name
                served_by.adapter_digest = version.digest
                served_by.modules = version.modules
            return served_by

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        with self._store.lock:
            base = self._store.bases[self._store.resident]
            return pb.GetServerInfoResponse(
                service_version="fake",
                replica=REPLICA,
                base=base,
                resident_base_digest=base.digest,
                device="cpu",
                compute_path="fake",
                limits=pb.Limits(
                    context_tokens=CONTEXT_TOKENS,
                    max_running_sequences=8,
                    max_queued_sequences=64,
                    max_upload_bytes=1 << 30,
                    max_line_bytes=1 << 20,
                    max_lora_rank=256,
                    max_batch_requests=MAX_BATCH_REQUESTS,
                    max_samples=MAX_SAMPLES,
                    max_replies=MAX_REPLIES,
                    max_constraint_bytes=MAX_CONSTRAINT_BYTES,
                ),
                methods=[f"METHOD_{name.upper()}" for name in METHODS],
                tasks=[common_pb2.TASK_TEXT_GENERATION],
                weight_formats=[common_pb2.WEIGHT_FORMAT_INT8, common_pb2.WEIGHT_FORMAT_NF4],
                load=pb.EngineLoad(kv_tokens_capacity=8 * CONTEXT_TOKENS),
                memory=[pb.MemoryUse(use="base", bytes=base.weight_bytes)],
            )


def _check(request: pb.ServeAdapterRequest) -> pb.Generate:
    if request.WhichOneof("model") is None:
        raise InvalidField.one("model", "is not set; allowed: adapter, plain_base")
    task = request.WhichOneof("task")
    if task is None:
        raise InvalidField.one("task", "is not set; allowed: generate, embed, classify, tag_tokens")
    if not request.inputs:
        raise InvalidField.one("inputs", "is empty; expected at least one")
    check_settings(request.generate, len(request.inputs))
    return request.generate


def _prompt(item: pb.Input) -> str:
    if item.WhichOneof("form") == "conversation":
        parts = item.conversation.messages[-1].parts if item.conversation.messages else []
    else:
        parts = item.content.parts
    prompt = "".join(part.text for part in parts)
    count = len(prompt.split())
    if not prompt:
        raise InvalidField.one("inputs", "has no text")
    if count >= CONTEXT_TOKENS:
        raise PromptTooLong(
            f"the prompt has {count} tokens; the context holds {CONTEXT_TOKENS}",
            metadata={"prompt_tokens": str(count), "context_tokens": str(CONTEXT_TOKENS)},
        )
    return prompt
