"""What inputs are encoded to: vectors, labels, tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from finetuned.values.common import Pooling


@final
@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image as an input."""

    data: bytes
    media_type: str = "image/png"
    """`image/png`, `image/jpeg`, `image/webp`, `image/bmp` or `image/gif` (one frame)."""


@final
@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts as one input, for adapters that were trained on rows with a `text_pair`."""

    text: str
    text_pair: str


@final
@dataclass(frozen=True, slots=True)
class Embedding:
    """An input as a vector."""

    values: tuple[float, ...]
    pooling: Pooling
    """UNKNOWN for images."""


@final
@dataclass(frozen=True, slots=True)
class LabelScore:
    label: str
    score: float
    """Its probability, 0 to 1."""


@final
@dataclass(frozen=True, slots=True)
class Classification:
    """What an input is."""

    labels: tuple[LabelScore, ...]
    """The likeliest, best first."""
    value: float | None
    """The number that a regression gives; None for labels."""

    @property
    def label(self) -> str:
        """The likeliest label; "" for a regression."""
        return self.labels[0].label if self.labels else ""


@final
@dataclass(frozen=True, slots=True)
class TaggedToken:
    """One token of a text; `start` and `end` count characters."""

    start: int
    end: int
    label: str
    score: float


@final
@dataclass(frozen=True, slots=True)
class Entity:
    """A span of a text that B- and I- labels mark."""

    label: str
    start: int
    end: int
    text: str
    score: float


@final
@dataclass(frozen=True, slots=True)
class Tagging:
    """What the tokens of a text are."""

    tokens: tuple[TaggedToken, ...]
    entities: tuple[Entity, ...]
