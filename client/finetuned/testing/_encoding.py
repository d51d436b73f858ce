"""What the fake server answers where no text is generated: equal inputs get equal answers, others others.

It plays a base that generates and encodes, so that one fake serves every test. An embedding has 8 numbers, all
adapters know the labels "no" and "yes", and a word that begins with a capital letter is a NAME.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence

from finetuned.errors import InvalidField
from finetuned.v1 import common_pb2
from finetuned.v1 import serving_service_pb2 as pb

_WIDTH = 8
_LABELS = ("no", "yes")
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif")


def encode(request: pb.ServeAdapterRequest, served_by: pb.ServedBy) -> Iterator[pb.ServeAdapterResponse]:
    """The answers to a call whose task is set and is not generate; its inputs are not none."""
    task = request.WhichOneof("task")
    if task != "embed" and not served_by.adapter_version:
        raise InvalidField.one(
            "model", f"is plain_base, which has no labels; name an adapter that can {task}"
        )
    inputs = [_content(item, f"inputs[{number}]", task) for number, item in enumerate(request.inputs)]
    done = pb.Done()
    yield pb.ServeAdapterResponse(started=pb.Started(served_by=served_by))
    for number, content in enumerate(inputs):
        result = pb.Result(input=number)
        seed = f"{served_by.adapter_digest} ".encode() + content
        if task == "embed":
            result.embedding.CopyFrom(_embedding(seed, request.embed))
        elif task == "classify":
            result.classification.labels.extend(_labels(seed, request.classify))
        else:
            _tag(content.decode(), result.tagging)
        yield pb.ServeAdapterResponse(result=result)
        done.outcomes.add(finish_reason=pb.FINISH_REASON_END)
        done.usage.prompt_tokens += len(content.split())
    done.timing.prefill.FromMilliseconds(2)
    yield pb.ServeAdapterResponse(done=done)


def _content(item: pb.Input, field: str, task: str | None) -> bytes:
    if item.WhichOneof("form") == "text_pair":
        if task != "classify":
            raise InvalidField.one(field, f"is a pair of texts; only classify takes pairs, not {task}")
        return f"{item.text_pair.text}\n{item.text_pair.text_pair}".encode()
    if item.WhichOneof("form") != "content" or not item.content.parts:
        raise InvalidField.one(field, "is no content; give a text or an image")
    for part in item.content.parts:
        if part.WhichOneof("kind") == "image" and part.image.media_type not in _MEDIA_TYPES:
            raise InvalidField.one(
                f"{field}.image.media_type",
                f"is {part.image.media_type!r}; allowed: {', '.join(_MEDIA_TYPES)}",
            )
    return b"".join(part.image.data or part.text.encode() for part in item.content.parts)


def _numbers(seed: bytes, count: int) -> list[float]:
    return [byte / 255 - 0.5 for byte in hashlib.sha256(seed).digest()[:count]]


def _embedding(seed: bytes, settings: pb.Embed) -> pb.Embedding:
    values = _numbers(seed, _WIDTH)
    if not settings.HasField("normalize") or settings.normalize:
        length = math.hypot(*values)
        values = [value / length for value in values]
    return pb.Embedding(values=values, pooling=settings.pooling or common_pb2.POOLING_MEAN)


def _labels(seed: bytes, settings: pb.Classify) -> Sequence[pb.LabelScore]:
    yes = _numbers(seed, 1)[0] + 0.5
    scored = sorted(zip((1 - yes, yes), _LABELS, strict=True), reverse=True)
    most = settings.top_k if settings.HasField("top_k") else len(scored)
    return [pb.LabelScore(label=label, score=score) for score, label in scored[:most]]


def _tag(text: str, tagging: pb.Tagging) -> None:
    for word in re.finditer(r"\S+", text):
        name = word.group()[0].isupper()
        tagging.tokens.add(start=word.start(), end=word.end(), label="B-NAME" if name else "O", score=0.9)
        if name:
            tagging.entities.add(
                label="NAME", start=word.start(), end=word.end(), text=word.group(), score=0.9
            )
