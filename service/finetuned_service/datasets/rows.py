"""The rows of a dataset: strict parsing and one canonical spelling.

    {"prompt": "...", "completion": "..."}                      PROMPT_COMPLETION
    {"messages": [{"role": "user", "content": "..."}, ...]}     CHAT
    {"text": "..."}                                             TEXT

A row that would teach nothing is refused, and so is a field nobody reads: a misspelt one is the
likeliest reason for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

from finetuned_service.errors import InvalidData
from finetuned_service.text.values import ROLES, Chat, ChatMessage, PromptCompletion, Role, Row, Text

__all__ = [
    "Chat",
    "ChatMessage",
    "PromptCompletion",
    "Row",
    "RowKind",
    "Text",
    "kind_of",
    "parse_row",
    "read_rows",
    "to_json",
]


class RowKind(StrEnum):
    """What the rows of a dataset hold; the contract's names. Only the first three can be parsed yet."""

    PROMPT_COMPLETION = "PROMPT_COMPLETION"
    CHAT = "CHAT"
    TEXT = "TEXT"
    LABELLED_TEXT = "LABELLED_TEXT"
    LABELLED_TOKENS = "LABELLED_TOKENS"
    PAIR = "PAIR"
    PREFERENCE = "PREFERENCE"
    LABELLED_IMAGE = "LABELLED_IMAGE"


FIELDS: Mapping[RowKind, tuple[str, ...]] = {
    RowKind.PROMPT_COMPLETION: ("prompt", "completion"),
    RowKind.CHAT: ("messages",),
    RowKind.TEXT: ("text",),
}
"""All fields of each kind; all are required."""

_CANONICAL = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MESSAGE_FIELDS = ("role", "content")
_SHOWN_FIELDS = 8
"""How many field names a refusal shows and compares; an object may have 100,000."""
_SHOWN_CHARACTERS = 40
"""And how much of each; one may have a million characters."""
_SHAPES = " or ".join(f"{{{', '.join(fields)}}}" for fields in FIELDS.values())


def kind_of(row: Row) -> RowKind:
    match row:
        case PromptCompletion():
            return RowKind.PROMPT_COMPLETION
        case Chat():
            return RowKind.CHAT
        case Text():
            return RowKind.TEXT
        case _:
            assert_never(row)


def parse_row(obj: object) -> Row:
    """The row that decoded JSON describes.

    Raises:
        InvalidData: a field is unknown, missing or of the wrong type, or there is nothing to learn.
    """
    fields = _object(obj, "the row")
    kind = _kind_for(fields)
    _check_fields(fields, FIELDS[kind], f"a {kind.value} row")
    match kind:
        case RowKind.PROMPT_COMPLETION:
            completion = _string(fields["completion"], "completion")
            return PromptCompletion(_string(fields["prompt"], "prompt"), _not_blank(completion, "completion"))
        case RowKind.CHAT:
            return Chat(_messages(fields["messages"]))
        case _:
            return Text(_not_blank(_string(fields["text"], "text"), "text"))


def to_json(row: Row) -> str:
    """The canonical spelling: fixed order of fields, no spaces, no needless escapes; one line."""
    match row:
        case PromptCompletion(prompt, completion):
            value: dict[str, Any] = {"prompt": prompt, "completion": completion}
        case Chat(messages):
            value = {"messages": [{"role": m.role, "content": m.content} for m in messages]}
        case Text(text):
            value = {"text": text}
        case _:
            assert_never(row)
    return _CANONICAL.encode(value)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `validate_jsonl` wrote.

    Raises:
        InvalidData: the file is not one of those; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_row(json.loads(line))
            except (InvalidData, ValueError) as error:
                raise InvalidData(f"line {number} of a stored dataset is damaged: {error}") from error


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidData(f"{where} is {_type_name(value)}; expected an object")
    return value


def _kind_for(fields: Mapping[str, Any]) -> RowKind:
    """The kind that has most in common with the fields found, misspelt ones included."""
    for kind, names in FIELDS.items():
        if set(fields) == set(names):
            return kind
    if not fields:
        raise InvalidData(f"the row has no fields; expected {_SHAPES}")
    found = tuple(name[:_SHOWN_CHARACTERS] for name in list(fields)[:_SHOWN_FIELDS])

    def in_common(kind: RowKind) -> float:
        exact = sum(name in fields for name in FIELDS[kind])
        close = sum(bool(_close(name, found)) for name in FIELDS[kind])
        return (exact + close / 2) / len(FIELDS[kind])

    best = max(FIELDS, key=in_common)
    if in_common(best) == 0:
        raise InvalidData(f"the row has the fields {_names(fields)}; expected {_SHAPES}")
    return best


def _check_fields(fields: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for name in fields:
        if name not in allowed:
            missing = tuple(other for other in allowed if other not in fields)
            close = _close(name[:_SHOWN_CHARACTERS], missing)
            remedy = f"did you mean {close[0]!r}?" if close else "remove it"
            raise InvalidData(
                f"unknown field {_shown(name)}: {where} has the fields {', '.join(allowed)}; {remedy}"
            )
    for name in allowed:
        if name not in fields:
            raise InvalidData(f"lacks the field {name!r}: {where} has the fields {', '.join(allowed)}")


@lru_cache(maxsize=1024)
def _close(name: str, names: tuple[str, ...]) -> list[str]:
    """At most one of the names that `name` may have been meant to be. A misspelt file misspells every row."""
    return get_close_matches(name, names, n=1, cutoff=0.75)


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidData(f"{where} is {_type_name(value)}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(
            f"{where} has half of a surrogate pair at character {error.start}; write whole characters"
        ) from None
    return value


def _not_blank(value: str, where: str) -> str:
    if not value.strip():
        raise InvalidData(
            f"{where} is empty: there is nothing to learn from the row; fill it or remove the row"
        )
    return value


def _messages(value: object) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _type_name(value)
        raise InvalidData(f"messages is {found}; expected a list of {{role, content}} objects")
    messages = tuple(_message(entry, place) for place, entry in enumerate(value))
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        place = roles.index("system", 1)
        raise InvalidData(f"messages[{place}] is a system turn; only the first message may be one")
    if "assistant" not in roles:
        raise InvalidData("messages has no assistant turn: there is nothing to learn from the row; add one")
    if "user" not in roles[: roles.index("assistant")]:
        raise InvalidData("messages has an assistant turn before any user turn; begin with what is answered")
    if roles[-1] != "assistant":
        raise InvalidData(
            f"messages ends with a {roles[-1]} turn that nobody answers; end with an assistant turn"
        )
    return messages


def _message(value: object, place: int) -> ChatMessage:
    where = f"messages[{place}]"
    fields = _object(value, where)
    _check_fields(fields, _MESSAGE_FIELDS, where)
    role = _role(fields["role"], f"{where}.role")
    content = _string(fields["content"], f"{where}.content")
    if role == "assistant":
        _not_blank(content, f"{where}.content")
    return ChatMessage(role, content)


def _role(value: object, where: str) -> Role:
    for role in ROLES:
        if value == role:
            return role
    found = _shown(value) if isinstance(value, str) else _type_name(value)
    raise InvalidData(f"{where} is {found}; allowed: {', '.join(ROLES)}")


def _type_name(value: object) -> str:
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


def _shown(text: str) -> str:
    """A name as found, safe to print: escaped, and cut where nobody would read on."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def _names(fields: Mapping[str, Any]) -> str:
    shown = ", ".join(_shown(name) for name in list(fields)[:_SHOWN_FIELDS])
    more = len(fields) - _SHOWN_FIELDS
    return f"{shown} and {more} more" if more > 0 else shown
