"""Which fields make which kind of row: found by name, and misspelt ones explained.

    {"prompt": "...", "completion": "..."}                        PROMPT_COMPLETION
    {"messages": [{"role": "user", "content": "..."}, ...]}       CHAT
    {"text": "..."}                                               TEXT
    {"text": "...", "label": "..."}                               LABELLED_TEXT      may have text_pair
    {"text": "...", "labels": ["...", ...]}                       MULTI_LABEL_TEXT   may have text_pair
    {"text": "...", "score": 0.5}                                 SCORED_TEXT        may have text_pair
    {"tokens": ["...", ...], "tags": ["...", ...]}                LABELLED_TOKENS
    {"anchor": "...", "positive": "..."}                          PAIR               may have negatives
    {"sentence1": "...", "sentence2": "...", "score": 0.5}        SCORED_PAIR
    {"prompt": "...", "chosen": "...", "rejected": "..."}         PREFERENCE         or messages for prompt
    {"image": "base64", "label": "..."}                           LABELLED_IMAGE

A pair may say query for anchor, and negative for one negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import InvalidData

_SHOWN_FIELDS = 8
"""How many field names a refusal shows and compares; an object may have 100,000."""
_SHOWN_CHARACTERS = 40
"""And how much of each; one may have a million characters."""
_CLOSE = 0.75
"""How much a misspelt name counts beside the right one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of one kind of row."""

    kind: RowKind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def allowed(self) -> tuple[str, ...]:
        return self.required + self.optional


SHAPES = (
    Shape(RowKind.PROMPT_COMPLETION, ("prompt", "completion")),
    Shape(RowKind.CHAT, ("messages",)),
    Shape(RowKind.TEXT, ("text",)),
    Shape(RowKind.LABELLED_TEXT, ("text", "label"), ("text_pair",)),
    Shape(RowKind.MULTI_LABEL_TEXT, ("text", "labels"), ("text_pair",)),
    Shape(RowKind.SCORED_TEXT, ("text", "score"), ("text_pair",)),
    Shape(RowKind.LABELLED_TOKENS, ("tokens", "tags")),
    Shape(RowKind.PAIR, ("anchor", "positive"), ("negatives", "negative")),
    Shape(RowKind.SCORED_PAIR, ("sentence1", "sentence2", "score")),
    Shape(RowKind.PREFERENCE, ("prompt", "chosen", "rejected")),
    Shape(RowKind.LABELLED_IMAGE, ("image", "label")),
    # Other spellings of kinds above.
    Shape(RowKind.PAIR, ("query", "positive"), ("negatives", "negative")),
    Shape(RowKind.PREFERENCE, ("messages", "chosen", "rejected")),
)

_LISTED = ", ".join(f"{{{', '.join(shape.required)}}}" for shape in SHAPES[:11])


def shape_of(fields: Mapping[str, Any]) -> Shape:
    """The shape that the fields have, or have most in common with, misspelt ones included.

    Raises:
        InvalidData: they have nothing in common with any.
    """
    for shape in SHAPES:
        if set(shape.required) <= set(fields) <= set(shape.allowed):
            return shape
    if not fields:
        raise InvalidData(f"the row has no fields; expected one of {_LISTED}")
    found = tuple(name[:_SHOWN_CHARACTERS] for name in list(fields)[:_SHOWN_FIELDS])
    best = max(SHAPES, key=lambda shape: _in_common(shape, found))
    if _in_common(best, found) == 0:
        raise InvalidData(f"the row has the fields {_names(fields)}; expected one of {_LISTED}")
    return best


def check_fields(
    fields: Mapping[str, Any], where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Refuse fields that nobody reads, and the lack of ones that are needed.

    Raises:
        InvalidData: naming the field.
    """
    allowed = required + optional
    for name in fields:
        if name not in allowed:
            missing = tuple(other for other in allowed if other not in fields)
            close = _close(name[:_SHOWN_CHARACTERS], missing)
            remedy = f"did you mean {close[0]!r}?" if close else "remove it"
            raise InvalidData(
                f"unknown field {shown(name)}: {where} has the fields {', '.join(allowed)}; {remedy}"
            )
    for name in required:
        if name not in fields:
            raise InvalidData(f"lacks the field {name!r}: {where} has the fields {', '.join(allowed)}")


def shown(text: str) -> str:
    """A name as found, safe to print: escaped, and cut where nobody would read on."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def _in_common(shape: Shape, found: tuple[str, ...]) -> float:
    """How much of the fields the shape explains, and how much of what the shape needs is there."""
    explained = sum(
        1.0 if name in shape.allowed else _CLOSE * bool(_close(name, shape.allowed)) for name in found
    )
    present = sum(1.0 if name in found else _CLOSE * bool(_close(name, found)) for name in shape.required)
    return explained / len(found) + present / len(shape.required)


@lru_cache(maxsize=1024)
def _close(name: str, names: tuple[str, ...]) -> list[str]:
    """At most one of the names that `name` may have been meant to be. A misspelt file misspells every row."""
    return get_close_matches(name, names, n=1, cutoff=0.75)


def _names(fields: Mapping[str, Any]) -> str:
    names = list(fields)
    more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
    return ", ".join(shown(name) for name in names[:_SHOWN_FIELDS]) + more
