"""ServeAdapter calls and their events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import serving_service_pb2 as pb

from finetuned_service.engine.messages import TokenLogprobs
from finetuned_service.errors import InvalidField, NotFound
from finetuned_service.names import AdapterSelector, parse_tenant
from finetuned_service.rpc.convert.common import enum_name, optional, seconds_to_proto
from finetuned_service.rpc.convert.encoding import encode_call_from_proto, result_to_proto
from finetuned_service.serving.encoded_values import (
    Classified,
    Embedding,
    EncodeCall,
    EncodeResult,
    Tagged,
)
from finetuned_service.serving.values import (
    Content,
    Conversation,
    Delta,
    Done,
    GenerationSettings,
    JsonSchema,
    Regex,
    ServeCall,
    ServedBy,
    ServeEvent,
    Truncation,
)
from finetuned_service.text.values import ChatMessage, Role

_ROLES: Mapping[int, Role] = {
    common.ROLE_SYSTEM: "system",
    common.ROLE_USER: "user",
    common.ROLE_ASSISTANT: "assistant",
}


def call_from_proto(request: pb.ServeAdapterRequest, default_parent: str = "") -> ServeCall | EncodeCall:
    """The call as plain values: one that generates, or one that encodes.

    Raises:
        InvalidField: neither adapter nor plain base is named, no task, or an input that cannot be read.
        NotFound: the adapter is another tenant's.
    """
    tenant = parse_tenant(request.parent or default_parent)
    if default_parent and tenant != parse_tenant(default_parent):
        raise InvalidField.one("parent", f"is {request.parent!r} in a batch of {default_parent!r}; unset it")
    match request.WhichOneof("model"):
        case "adapter":
            selector = AdapterSelector.parse(request.adapter, "adapter")
            if selector.tenant != tenant:
                raise NotFound.resource(selector.adapter_name)
        case "plain_base":
            selector = None
        case _:
            raise InvalidField.one(
                "model", "is not set: name an adapter, or ask for plain_base if you mean the base itself"
            )
    match request.WhichOneof("task"):
        case "generate":
            pass
        case None:
            raise InvalidField.one("task", "is not set; available: generate, embed, classify, tag_tokens")
        case _:
            return encode_call_from_proto(request, tenant, selector)
    inputs = tuple(_input(item, f"inputs[{i}]") for i, item in enumerate(request.inputs))
    return ServeCall(tenant, selector, inputs, _generation(request.generate))


def _input(item: pb.Input, field: str) -> Conversation | Content:
    match item.WhichOneof("form"):
        case "conversation":
            messages = tuple(
                _message(message, f"{field}.conversation.messages[{i}]")
                for i, message in enumerate(item.conversation.messages)
            )
            if not messages or messages[-1].role != "user":
                raise InvalidField.one(
                    f"{field}.conversation.messages", "must end with a message of ROLE_USER to answer"
                )
            return Conversation(messages)
        case "content":
            return Content(_text(item.content.parts, f"{field}.content.parts"))
        case _:
            found = item.WhichOneof("form") or "empty"
            raise InvalidField.one(field, f"is {found}; generate takes conversation or content")


def _message(message: common.Message, field: str) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidField.one(
            f"{field}.role", f"is {message.role}; allowed: ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT"
        )
    return ChatMessage(role, _text(message.parts, f"{field}.parts"))


def _text(parts: Iterable[common.Part], field: str) -> str:
    texts: list[str] = []
    for i, part in enumerate(parts):
        if part.WhichOneof("kind") == "image":
            raise InvalidField.one(f"{field}[{i}]", "is an image; generate takes text")
        texts.append(part.text)
    return "".join(texts)


def _generation(generate: pb.Generate) -> GenerationSettings:
    truncation = enum_name(pb.Truncation, generate.truncation, "TRUNCATION_", "generate.truncation")
    temperature = optional(generate, "temperature")
    return GenerationSettings(
        max_tokens=optional(generate, "max_tokens"),
        temperature=0.0 if temperature is None else temperature,
        top_k=optional(generate, "top_k"),
        top_p=optional(generate, "top_p"),
        seed=optional(generate, "seed"),
        stop=tuple(generate.stop),
        stop_token_ids=tuple(generate.stop_token_ids),
        truncation=Truncation(truncation or Truncation.REJECT),
        logprobs=generate.logprobs,
        ignore_eos=generate.ignore_eos,
        n=optional(generate, "n"),
        min_tokens=optional(generate, "min_tokens"),
        repetition_penalty=optional(generate, "repetition_penalty"),
        presence_penalty=optional(generate, "presence_penalty"),
        frequency_penalty=optional(generate, "frequency_penalty"),
        logit_bias=tuple(sorted(generate.logit_bias.items())),
        constraint=_constraint(generate),
        delta_tokens=optional(generate, "delta_tokens"),
    )


def _constraint(generate: pb.Generate) -> JsonSchema | Regex | None:
    match generate.WhichOneof("constraint"):
        case "json_schema":
            return JsonSchema(generate.json_schema)
        case "regex":
            return Regex(generate.regex)
        case _:
            return None


def event_to_proto(event: ServeEvent | EncodeResult) -> pb.ServeAdapterResponse:
    match event:
        case Embedding() | Classified() | Tagged():
            return pb.ServeAdapterResponse(result=result_to_proto(event))
        case ServedBy():
            return pb.ServeAdapterResponse(started=pb.Started(served_by=served_by_to_proto(event)))
        case Delta():
            delta = pb.Delta(
                input=event.input,
                sample=event.sample,
                text=event.text,
                token_ids=event.token_ids,
                logprobs=[_logprobs(entry) for entry in event.logprobs],
            )
            return pb.ServeAdapterResponse(delta=delta)
        case Done():
            return pb.ServeAdapterResponse(done=done_to_proto(event))


def reply_tokens_to_proto(deltas: Iterable[Delta]) -> pb.ReplyTokens:
    """Those of one reply, in its order."""
    tokens = pb.ReplyTokens()
    for delta in deltas:
        tokens.token_ids.extend(delta.token_ids)
        tokens.logprobs.extend(_logprobs(entry) for entry in delta.logprobs)
    return tokens


def served_by_to_proto(served_by: ServedBy) -> pb.ServedBy:
    return pb.ServedBy(
        adapter_version=served_by.adapter_version,
        adapter_digest=served_by.adapter_digest,
        base=served_by.base,
        base_digest=served_by.base_digest,
        modules=served_by.modules,
        replica=served_by.replica,
    )


def done_to_proto(done: Done) -> pb.Done:
    return pb.Done(
        outcomes=[
            pb.Outcome(
                finish_reason=f"FINISH_REASON_{outcome.finish}",
                stop=outcome.stop,
                truncated_tokens=outcome.truncated_tokens,
            )
            for outcome in done.outcomes
        ],
        usage=pb.Usage(
            prompt_tokens=done.prompt_tokens,
            cached_tokens=done.cached_tokens,
            completion_tokens=done.completion_tokens,
        ),
        timing=pb.Timing(
            queue=seconds_to_proto(done.timing.queue),
            load=seconds_to_proto(done.timing.load),
            prefill=seconds_to_proto(done.timing.prefill),
            decode=seconds_to_proto(done.timing.decode),
        ),
    )


def _logprobs(entry: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=entry.logprob, top_token_ids=entry.top_token_ids, top_logprobs=entry.top_logprobs
    )
