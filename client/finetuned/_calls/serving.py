"""The verbs that ask for text, and for what the server is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, StreamCall
from finetuned._names import Names
from finetuned._status import from_error
from finetuned.errors import FinetunedError, InvalidField
from finetuned.v1 import common_pb2
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.values.replies import (
    Done,
    FinishReason,
    Outcome,
    Reply,
    ReplyTokens,
    Sample,
    ServedBy,
    ServeEvent,
)
from finetuned.values.requests import GenerateRequest, Message, Prompt, RawText, Role, Truncation
from finetuned.values.server import ServerInfo

_SERVICE = "ServingService"
_MAX_DELTA_TOKENS = 2**20


def serve(names: Names, request: GenerateRequest) -> StreamCall[ServeEvent]:
    """ServeAdapter for one request; it is retried only before its first message."""

    def event(answer: pb.ServeAdapterResponse) -> ServeEvent:
        return convert.read(answer, ServeEvent)

    method = Method(_SERVICE, "ServeAdapter", pb.ServeAdapterResponse)
    return StreamCall(method, _request(names, request), event, Kind.GENERATE)


def serve_whole(names: Names, request: GenerateRequest) -> StreamCall[ServeEvent]:
    """`serve` for a caller that waits for the whole reply: its first token and the rest."""
    if request.delta_tokens is None:
        request = dataclasses.replace(request, delta_tokens=_MAX_DELTA_TOKENS)
    return serve(names, request)


def serve_many(names: Names, requests: Sequence[GenerateRequest]) -> Call[list[Reply | FinetunedError]]:
    """Answer many requests in one call; they may mix adapters and the plain base.

    Each succeeds or fails alone: an item is a `Reply` or the error of that request, in order.

    Raises:
        InvalidField: there are more requests than the server takes at once.
    """

    def replies(answer: pb.BatchServeAdapterResponse) -> list[Reply | FinetunedError]:
        return [_item(item) for item in answer.items]

    request = pb.BatchServeAdapterRequest(
        parent=names.parent, requests=[_request(names, item) for item in requests]
    )
    method = Method(_SERVICE, "BatchServeAdapter", pb.BatchServeAdapterResponse)
    return Call(method, request, replies, Kind.GENERATE)


def server_info(names: Names) -> Call[ServerInfo]:
    """What the server holds, can do and allows."""
    del names  # the server answers for itself
    return _info()


def wait_until_ready(names: Names, timeout_seconds: float = 60.0) -> Call[ServerInfo]:
    """Wait until the server answers; for a server that was just started.

    Raises:
        Unavailable: it did not answer in time.
    """
    del names
    return dataclasses.replace(_info(), patient=True, timeout_seconds=timeout_seconds)


def _info() -> Call[ServerInfo]:
    def info(answer: pb.GetServerInfoResponse) -> ServerInfo:
        return convert.read(answer, ServerInfo)

    return Call(Method(_SERVICE, "GetServerInfo", pb.GetServerInfoResponse), pb.GetServerInfoRequest(), info)


def _request(names: Names, request: GenerateRequest) -> pb.ServeAdapterRequest:
    if (request.adapter is not None) == request.plain_base:
        found = "both are given" if request.plain_base else "neither is given"
        raise InvalidField.one("model", f"{found}; give adapter=... or plain_base=True")
    if request.json_schema is not None and request.regex is not None:
        raise InvalidField.one("constraint", "both json_schema and regex are given; give one of them")
    schema = request.json_schema
    settings = pb.Generate(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        stop=[request.stop] if isinstance(request.stop, str) else request.stop,
        stop_token_ids=request.stop_token_ids,
        truncation=convert.enum_name(pb.Truncation.DESCRIPTOR, request.truncation or Truncation.UNKNOWN),
        logprobs=request.logprobs,
        ignore_eos=request.ignore_eos,
        n=request.n,
        min_tokens=request.min_tokens,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias or {},
        json_schema=schema if schema is None or isinstance(schema, str) else json.dumps(schema),
        regex=request.regex,
        delta_tokens=request.delta_tokens,
    )
    message = pb.ServeAdapterRequest(parent=names.parent, inputs=[_input(request.prompt)], generate=settings)
    if request.adapter is not None:
        message.adapter = names.adapter_like(request.adapter)
    else:
        message.plain_base.SetInParent()
    return message


def _input(prompt: Prompt) -> pb.Input:
    if isinstance(prompt, RawText):
        return pb.Input(content=pb.Content(parts=[common_pb2.Part(text=prompt.text)]))
    turns = [Message(Role.USER, prompt)] if isinstance(prompt, str) else prompt
    return pb.Input(conversation=pb.Conversation(messages=[_message(turn) for turn in turns]))


def _message(turn: Message | Mapping[str, str]) -> common_pb2.Message:
    if not isinstance(turn, Message):
        if set(turn) != {"role", "content"}:
            raise InvalidField.one("messages", f"has the keys {sorted(turn)}; expected 'role' and 'content'")
        turn = Message(turn["role"], turn["content"])
    known = [role.value for role in Role if role is not Role.UNKNOWN]
    if turn.role not in known:
        raise InvalidField.one("messages.role", f"is {turn.role!r}; allowed: {', '.join(known)}")
    role = convert.enum_name(common_pb2.Role.DESCRIPTOR, Role(turn.role))
    return common_pb2.Message(role=role, parts=[common_pb2.Part(text=turn.content)])


def _item(item: pb.BatchItem) -> Reply | FinetunedError:
    if item.WhichOneof("outcome") != "reply":
        return from_error(item.error)
    done = convert.read(item.reply.done, Done)
    tokens = [convert.read(one, ReplyTokens) for one in item.reply.tokens]
    samples = [
        sample_of(
            text, done, place, tokens[place] if place < len(tokens) else ReplyTokens()
        )  # of an older server
        for place, text in enumerate(item.reply.texts or [""])
    ]
    return reply_of(samples, convert.read(item.reply.served_by, ServedBy), done)


def sample_of(text: str, done: Done, place: int, tokens: ReplyTokens) -> Sample:
    """The sample with that place among the samples of a request with one input."""
    outcome = _outcome(done, place)
    return Sample(text, outcome.finish_reason, outcome.stop, tokens.token_ids, tokens.logprobs)


def reply_of(samples: Sequence[Sample], served_by: ServedBy, done: Done) -> Reply:
    """The reply to a request with one input."""
    first = samples[0]
    return Reply(
        text=first.text,
        served_by=served_by,
        finish_reason=first.finish_reason,
        stop=first.stop,
        truncated_tokens=_outcome(done, 0).truncated_tokens,
        usage=done.usage,
        timing=done.timing,
        token_ids=first.token_ids,
        logprobs=first.logprobs,
        samples=tuple(samples),
    )


def _outcome(done: Done, place: int) -> Outcome:
    return done.outcomes[place] if place < len(done.outcomes) else Outcome(FinishReason.UNKNOWN, "", 0)
