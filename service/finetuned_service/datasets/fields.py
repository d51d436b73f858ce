"""The fields of rows: each read strictly from decoded JSON, with words for what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetuned_service.datasets.shapes import shown
from finetuned_service.errors import InvalidData

MAX_LABEL_CHARACTERS = 256
_PREFIXED = re.compile(r"([BIES])-(.+)", re.DOTALL)
_OPENS = "BS"
"""Prefixes with which an entity begins."""


def json_object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidData(f"{where} is {type_name(value)}; expected an object")
    return value


def string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidData(f"{where} is {type_name(value)}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(
            f"{where} has half of a surrogate pair at character {error.start}; write whole characters"
        ) from None
    return value


def not_blank(value: str, where: str) -> str:
    if not value.strip():
        raise InvalidData(
            f"{where} is empty: there is nothing to learn from the row; fill it or remove the row"
        )
    return value


def text(value: object, where: str) -> str:
    """A string that says something."""
    return not_blank(string(value, where), where)


def texts(value: object, where: str) -> tuple[str, ...]:
    """A list of strings that each say something; may be empty."""
    return tuple(text(entry, f"{where}[{place}]") for place, entry in enumerate(_list(value, where)))


def score(value: object, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidData(f"{where} is {type_name(value)}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidData(f"{where} is {number}; expected a finite number: correct it or remove the row")
    return number


def label(value: object, where: str) -> str:
    """The name of a class; an integer is its decimal name."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    name = string(value, where)
    if not name.strip():
        raise InvalidData(f"{where} is empty; name the class or remove the row")
    if name != name.strip():
        raise InvalidData(
            f"{where} is {shown(name)}, with white space at an end, and would be another class than "
            f"{shown(name.strip())}; remove it"
        )
    if len(name) > MAX_LABEL_CHARACTERS:
        raise InvalidData(
            f"{where} has {len(name)} characters; the name of a class has at most {MAX_LABEL_CHARACTERS}"
        )
    return name


def labels(value: object, where: str) -> tuple[str, ...]:
    """Names of classes, sorted, each once; none where no class applies."""
    found = tuple(label(entry, f"{where}[{place}]") for place, entry in enumerate(_list(value, where)))
    if len(set(found)) < len(found):
        twice = next(name for place, name in enumerate(found) if name in found[:place])
        raise InvalidData(f"{where} has {shown(twice)} twice; keep one")
    return tuple(sorted(found))


def tokens(value: object, where: str) -> tuple[str, ...]:
    """The words of a sentence: at least one, none blank."""
    found = texts(value, where)
    if not found:
        raise InvalidData(f"{where} is an empty list; expected the words of a sentence")
    return found


def tags(value: object, where: str, count: int) -> tuple[str, ...]:
    """One tag for each of `count` tokens; those of BIO and BIOES must follow each other as they can."""
    found = tuple(label(entry, f"{where}[{place}]") for place, entry in enumerate(_list(value, where)))
    if len(found) != count:
        raise InvalidData(f"has {count} tokens and {len(found)} tags; each token needs one tag")
    _check_entities(found, where)
    return found


def image(value: object, where: str) -> bytes:
    """The bytes of an image, or those that a base64 spells; whether they decode is asked elsewhere."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(text(value, where), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidData(f"{where} is not base64 ({error}); expected a whole image file in base64") from None


def _list(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise InvalidData(f"{where} is {type_name(value)}; expected a list")
    return value


def _check_entities(found: Sequence[str], where: str) -> None:
    before = ""
    for place, tag in enumerate(found):
        prefixed, entity_before = _PREFIXED.fullmatch(tag), _PREFIXED.fullmatch(before)
        before = tag
        if prefixed is None or prefixed[1] in _OPENS:
            continue
        goes_on = entity_before is not None and entity_before[1] in "BI" and entity_before[2] == prefixed[2]
        if not goes_on:
            raise InvalidData(
                f"{where}[{place}] is {shown(tag)} with no entity {shown(prefixed[2])} open before it; the first "
                f"tag of an entity is {shown('B-' + prefixed[2])} (BIO, BIOES) or {shown('S-' + prefixed[2])} (BIOES)"
            )


def type_name(value: object) -> str:
    """JSON's word for the type of a decoded value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
