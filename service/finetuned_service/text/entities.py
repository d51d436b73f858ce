"""Spans that the tags of tokens mark: BIO and BIOES, as conlleval reads them. No library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

OUTSIDE = "O"
_PREFIXES = ("B-", "I-", "E-", "S-")


@dataclass(frozen=True, slots=True)
class Entity:
    """A span of a text, in characters."""

    label: str
    start: int
    end: int
    text: str
    score: float
    """Mean of its tokens' probabilities."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `[first, end)`."""

    label: str
    first: int
    end: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans that a row of tags marks.

    An I- or E- that continues nothing of its label begins a span of its own, as in conlleval; a tag without a
    prefix, but O, marks its token alone with those of the same tag before it.
    """
    spans: list[Span] = []
    for place, (before, tag) in enumerate(pairwise((OUTSIDE, *tags))):
        if tag == OUTSIDE:
            continue
        prefix, label = _parts(tag)
        before_prefix, before_label = _parts(before)
        continues = (
            bool(spans)
            and spans[-1].end == place
            and before_label == label
            and prefix in {"I-", "E-", ""}
            and before_prefix not in {"E-", "S-"}
        )
        if continues:
            spans[-1] = Span(label, spans[-1].first, place + 1)
        else:
            spans.append(Span(label, place, place + 1))
    return spans


def _parts(tag: str) -> tuple[str, str]:
    if tag[:2] in _PREFIXES and len(tag) > 2:
        return tag[:2], tag[2:]
    return "", tag
