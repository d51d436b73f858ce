"""Calls that encode their inputs, and their events."""

from __future__ import annotations

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import serving_service_pb2 as pb

from finetuned_service.errors import InvalidField
from finetuned_service.names import AdapterSelector
from finetuned_service.rpc.convert.common import enum_name, optional
from finetuned_service.serving.encoded_values import (
    Classified,
    Classify,
    Embed,
    Embedding,
    EncodeCall,
    EncodeInput,
    EncodeResult,
    EncodeTask,
    ImageContent,
    Tagged,
    TagTokens,
    TextPair,
)
from finetuned_service.serving.values import Content, Truncation
from finetuned_service.vocabulary import Pooling


def encode_call_from_proto(
    request: pb.ServeAdapterRequest, tenant: str, selector: AdapterSelector | None
) -> EncodeCall:
    """The call as plain values; its task is set and is not generate.

    Raises:
        InvalidField: a setting or an input cannot be read.
    """
    word = request.WhichOneof("task") or ""
    truncation = enum_name(
        pb.Truncation, getattr(request, word).truncation, "TRUNCATION_", f"{word}.truncation"
    )
    inputs = tuple(_input(item, f"inputs[{i}]") for i, item in enumerate(request.inputs))
    chosen = Truncation(truncation or Truncation.REJECT)
    return EncodeCall(tenant, selector, inputs, _wanted(request, word), chosen)


def _wanted(request: pb.ServeAdapterRequest, word: str) -> EncodeTask:
    match word:
        case "classify":
            return Classify(optional(request.classify, "top_k"))
        case "tag_tokens":
            return TagTokens()
        case _:
            pooling = enum_name(common.Pooling, request.embed.pooling, "POOLING_", "embed.pooling")
            normalize = optional(request.embed, "normalize")
            return Embed(Pooling(pooling) if pooling else None, normalize is not False)


def _input(item: pb.Input, field: str) -> EncodeInput:
    form = item.WhichOneof("form")
    if form == "text_pair":
        return TextPair(item.text_pair.text, item.text_pair.text_pair)
    if form != "content":
        raise InvalidField.one(
            field,
            f"is {form or 'empty'}; give content, a text or an image, or a text_pair: only generate takes a conversation",
        )
    parts = item.content.parts
    images = [part.image for part in parts if part.WhichOneof("kind") == "image"]
    if not images:
        return Content("".join(part.text for part in parts))
    if len(parts) > 1:
        raise InvalidField.one(
            f"{field}.content.parts", "mixes an image with other parts; give it an input of its own"
        )
    return ImageContent(images[0].data, images[0].media_type)


def result_to_proto(result: EncodeResult) -> pb.Result:
    match result:
        case Embedding():
            pooling = f"POOLING_{result.pooling}" if result.pooling else None
            return pb.Result(
                input=result.input, embedding=pb.Embedding(values=result.values, pooling=pooling)
            )
        case Classified():
            labels = [pb.LabelScore(label=label, score=score) for label, score in result.labels]
            found = pb.Classification(labels=labels, value=result.value)
            return pb.Result(input=result.input, classification=found)
        case Tagged():
            tokens = [
                pb.TaggedToken(start=start, end=end, label=label, score=score)
                for start, end, label, score in result.tokens
            ]
            entities = [
                pb.Entity(label=e.label, start=e.start, end=e.end, text=e.text, score=e.score)
                for e in result.entities
            ]
            return pb.Result(input=result.input, tagging=pb.Tagging(tokens=tokens, entities=entities))
