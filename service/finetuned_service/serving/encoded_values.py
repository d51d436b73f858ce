"""Calls that encode their inputs, and what they are answered with, as plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.names import AdapterSelector
from finetuned_service.serving.values import Content, Done, ServedBy, Truncation
from finetuned_service.text.entities import Entity
from finetuned_service.vocabulary import Pooling, Task


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An encoded image."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts of which one question is asked: whether one follows from the other, how alike they are."""

    text: str
    pair: str


@dataclass(frozen=True, slots=True)
class Embed:
    """As in the contract."""

    word = "embed"
    tasks = frozenset({Task.FEATURE_EXTRACTION})
    pooling: Pooling | None = None
    """None is the adapter's, else the base's own."""
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Classify:
    """As in the contract."""

    word = "classify"
    tasks = frozenset({Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION})
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class TagTokens:
    """As in the contract."""

    word = "tag_tokens"
    tasks = frozenset({Task.TOKEN_CLASSIFICATION})


EncodeTask = Embed | Classify | TagTokens
EncodeInput = Content | TextPair | ImageContent


@dataclass(frozen=True, slots=True)
class EncodeCall:
    """One call: the weights, the inputs, what is wanted of them."""

    tenant: str
    adapter: AdapterSelector | None
    """None is the plain base, asked for by name."""
    inputs: tuple[EncodeInput, ...]
    wanted: EncodeTask
    truncation: Truncation = Truncation.REJECT
    deadline_seconds: float | None = None
    """When the caller stops waiting, by `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Embedding:
    input: int
    values: tuple[float, ...]
    pooling: Pooling | None
    """None for images."""


@dataclass(frozen=True, slots=True)
class Classified:
    input: int
    labels: tuple[tuple[str, float], ...]
    """With their probabilities, best first; none for a regression."""
    value: float | None = None
    """What a regression gives."""


@dataclass(frozen=True, slots=True)
class Tagged:
    input: int
    tokens: tuple[tuple[int, int, str, float], ...]
    """First character, the one after the last, label, probability."""
    entities: tuple[Entity, ...]


EncodeResult = Embedding | Classified | Tagged
EncodeEvent = ServedBy | EncodeResult | Done
