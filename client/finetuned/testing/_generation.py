"""The fake server's settings of text generation: what is refused, and what a reply is cut into."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator

from finetuned.errors import InvalidField
from finetuned.testing._store import MAX_REPLIES, MAX_SAMPLES
from finetuned.v1 import serving_service_pb2 as pb

_DEFAULT_MAX_TOKENS = 256
_MAX_DELTA_TOKENS = 2**20
_RANGES = (
    ("temperature", 0, 10),
    ("repetition_penalty", 1e-9, 10),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)


def check_settings(settings: pb.Generate, inputs: int) -> None:
    """Raises InvalidField for what a real server refuses, as far as the fake looks."""
    if settings.HasField("max_tokens") and settings.max_tokens < 1:
        raise InvalidField.one("generate.max_tokens", f"is {settings.max_tokens}; allowed: at least 1")
    if settings.HasField("min_tokens") and settings.min_tokens < 0:
        raise InvalidField.one("generate.min_tokens", f"is {settings.min_tokens}; allowed: 0 to max_tokens")
    if settings.HasField("delta_tokens") and not 1 <= settings.delta_tokens <= _MAX_DELTA_TOKENS:
        raise InvalidField.one(
            "generate.delta_tokens", f"is {settings.delta_tokens}; allowed: 1 to {_MAX_DELTA_TOKENS}"
        )
    for name, low, high in _RANGES:
        value: float = getattr(settings, name)
        if settings.HasField(name) and not low <= value <= high:
            raise InvalidField.one(f"generate.{name}", f"is {value}; allowed: {low} to {high}")
    if settings.HasField("top_p") and not 0 < settings.top_p <= 1:
        raise InvalidField.one("generate.top_p", f"is {settings.top_p}; allowed: above 0.0 to 1.0")
    _check_samples(settings, inputs)
    _check_constraint(settings)


def samples(settings: pb.Generate) -> int:
    return settings.n if settings.HasField("n") else 1


def _check_samples(settings: pb.Generate, inputs: int) -> None:
    count = samples(settings)
    if not 1 <= count <= MAX_SAMPLES:
        raise InvalidField.one("generate.n", f"is {count}; allowed: 1 to {MAX_SAMPLES}")
    if count > 1 and not settings.temperature:
        raise InvalidField.one(
            "generate.n", f"is {count} at temperature 0; allowed: 1, or a temperature above 0"
        )
    if inputs * count > MAX_REPLIES:
        raise InvalidField.one("inputs", f"is {inputs * count} replies; allowed: {MAX_REPLIES}")


def _check_constraint(settings: pb.Generate) -> None:
    name = settings.WhichOneof("constraint")
    if name is None:
        return
    text: str = getattr(settings, name)
    try:
        if name == "regex":
            re.compile(text)
        elif not isinstance(json.loads(text), dict):
            raise ValueError("expected a JSON object")
    except (ValueError, re.error) as error:
        raise InvalidField.one(f"generate.{name}", f"cannot be kept to: {error}") from error


def deltas(words: list[str], number: int, sample: int, settings: pb.Generate) -> Iterator[pb.Delta]:
    """The first word alone, then as many at a time as the caller wants."""
    wanted = 1 if settings.stop else max(1, settings.delta_tokens)
    for first in (0, *range(1, len(words), wanted))[: len(words)]:
        some = words[first : first + wanted if first else 1]
        text = " ".join(some) if first == 0 else f" {' '.join(some)}"
        token_ids = [zlib.crc32(word.encode()) % 32000 for word in some]
        delta = pb.Delta(input=number, sample=sample, text=text, token_ids=token_ids)
        if settings.logprobs:
            for _ in some:
                delta.logprobs.add(logprob=-0.5)
        yield delta


def reply(words: list[str], settings: pb.Generate) -> tuple[list[str], pb.Outcome]:
    limit = settings.max_tokens if settings.HasField("max_tokens") else _DEFAULT_MAX_TOKENS
    for position, word in enumerate(words[:limit]):
        for stop in settings.stop:
            if stop in word:
                return words[:position], pb.Outcome(finish_reason=pb.FINISH_REASON_STOP, stop=stop)
    if len(words) > limit:
        return words[:limit], pb.Outcome(finish_reason=pb.FINISH_REASON_LENGTH)
    return words, pb.Outcome(finish_reason=pb.FINISH_REASON_END)
