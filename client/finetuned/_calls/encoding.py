"""The verbs that encode inputs: vectors, labels, tags."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from finetuned import _convert as convert
from finetuned._calls.call import Kind, Method, StreamCall
from finetuned._names import Names
from finetuned.errors import Internal, InvalidField
from finetuned.v1 import common_pb2
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.values.common import Pooling
from finetuned.values.encodings import Classification, Embedding, Image, Tagging, TextPair
from finetuned.values.replies import Answer, Answers, ServeEvent
from finetuned.values.requests import Truncation

_SERVICE = "ServingService"
Inputs = str | Image | Sequence[str | Image]
PairInputs = str | Image | TextPair | Sequence[str | Image | TextPair]
T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class GatheredCall(Generic[T]):
    """A stream that is read to its end before it means something."""

    stream: StreamCall[ServeEvent]
    gather: Callable[[Sequence[ServeEvent]], T]


def embed(
    names: Names,
    inputs: Inputs,
    *,
    adapter: str | None = None,
    plain_base: bool = False,
    pooling: Pooling | None = None,
    normalize: bool = True,
    truncation: Truncation | None = None,
) -> GatheredCall[Answers[Embedding]]:
    """Turn texts or images into vectors; for bases that encode.

    Args:
        inputs: one or several; at most 64.
        adapter: for example "search", "search@prod" or "search@3"; or else
        plain_base: True to ask the base without any adapter.
        pooling: how the vectors of a text's tokens become one; default the adapter's, else the base's own.
        normalize: scale each vector to length 1.
        truncation: what happens to texts that do not fit; default REJECT.

    Raises:
        InvalidField: the base does not encode, the adapter was trained for another task, or an image does not
            decode.
        PromptTooLong: a text does not fit the context.
    """
    request = pb.ServeAdapterRequest(
        embed=pb.Embed(
            pooling=convert.enum_name(common_pb2.Pooling.DESCRIPTOR, pooling or Pooling.UNKNOWN),
            normalize=normalize,
            truncation=_truncation(truncation),
        )
    )

    def gather(events: Sequence[ServeEvent]) -> Answers[Embedding]:
        return _answers(events, [e.result.embedding for e in _results(events) if e.result])

    return GatheredCall(_call(names, request, inputs, adapter, plain_base=plain_base), gather)


def classify(
    names: Names,
    inputs: PairInputs,
    *,
    adapter: str,
    top_k: int | None = None,
    truncation: Truncation | None = None,
) -> GatheredCall[Answers[Classification]]:
    """Say what texts, pairs of texts or images are, in the labels of an adapter that was trained for it.

    Args:
        inputs: one or several; at most 64.
        adapter: for example "topics", "topics@prod" or "topics@3".
        top_k: how many labels to tell, best first; default all.
        truncation: what happens to texts that do not fit; default REJECT.

    Raises:
        NotFound: there is no such adapter.
        InvalidField: it was trained for another task, or an image does not decode.
        PromptTooLong: a text does not fit the context.
    """
    request = pb.ServeAdapterRequest(classify=pb.Classify(top_k=top_k, truncation=_truncation(truncation)))

    def gather(events: Sequence[ServeEvent]) -> Answers[Classification]:
        return _answers(events, [e.result.classification for e in _results(events) if e.result])

    return GatheredCall(_call(names, request, inputs, adapter, plain_base=False), gather)


def tag_tokens(
    names: Names,
    inputs: str | Sequence[str],
    *,
    adapter: str,
    truncation: Truncation | None = None,
) -> GatheredCall[Answers[Tagging]]:
    """Say what the tokens of texts are, in the labels of an adapter that was trained for it.

    Args:
        inputs: one or several; at most 64.
        adapter: for example "names", "names@prod" or "names@3".
        truncation: what happens to texts that do not fit; default REJECT.

    Raises:
        NotFound: there is no such adapter.
        InvalidField: it was trained for another task.
        PromptTooLong: a text does not fit the context.
    """
    request = pb.ServeAdapterRequest(tag_tokens=pb.TagTokens(truncation=_truncation(truncation)))

    def gather(events: Sequence[ServeEvent]) -> Answers[Tagging]:
        return _answers(events, [e.result.tagging for e in _results(events) if e.result])

    return GatheredCall(_call(names, request, inputs, adapter, plain_base=False), gather)


def _call(
    names: Names,
    request: pb.ServeAdapterRequest,
    inputs: PairInputs,
    adapter: str | None,
    *,
    plain_base: bool,
) -> StreamCall[ServeEvent]:
    if (adapter is not None) == plain_base:
        found = "both are given" if plain_base else "neither is given"
        raise InvalidField.one("model", f"{found}; give adapter=... or plain_base=True")
    request.parent = names.parent
    several = [inputs] if isinstance(inputs, str | Image | TextPair) else inputs
    request.inputs.extend(map(_input, several))
    if adapter is not None:
        request.adapter = names.adapter_like(adapter)
    else:
        request.plain_base.SetInParent()

    def event(answer: pb.ServeAdapterResponse) -> ServeEvent:
        return convert.read(answer, ServeEvent)

    method = Method(_SERVICE, "ServeAdapter", pb.ServeAdapterResponse)
    return StreamCall(method, request, event, Kind.GENERATE)


def _input(item: str | Image | TextPair) -> pb.Input:
    if isinstance(item, TextPair):
        return pb.Input(text_pair=pb.TextPair(text=item.text, text_pair=item.text_pair))
    return pb.Input(content=pb.Content(parts=[_part(item)]))


def _part(item: str | Image) -> common_pb2.Part:
    if isinstance(item, str):
        return common_pb2.Part(text=item)
    return common_pb2.Part(image=common_pb2.Image(data=item.data, media_type=item.media_type))


def _truncation(truncation: Truncation | None) -> str:
    return convert.enum_name(pb.Truncation.DESCRIPTOR, truncation or Truncation.UNKNOWN)


def _results(events: Sequence[ServeEvent]) -> list[ServeEvent]:
    return sorted((e for e in events if e.result), key=lambda e: e.result.input if e.result else 0)


def _answers(events: Sequence[ServeEvent], found: Sequence[Answer | None]) -> Answers[Answer]:
    started = next((event.started for event in events if event.started), None)
    done = next((event.done for event in events if event.done), None)
    items = tuple(item for item in found if item is not None)
    if started is None or done is None or len(items) != len(done.outcomes):
        raise Internal("the server did not answer every input")
    dropped = tuple(outcome.truncated_tokens for outcome in done.outcomes)
    return Answers(items, started.served_by, dropped, done.usage, done.timing)
