"""Messages of a conversation, read strictly from decoded JSON."""

from __future__ import annotations

from finetuned_service.datasets.fields import json_object, not_blank, string, type_name
from finetuned_service.datasets.shapes import check_fields, shown
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import ROLES, ChatMessage, Role

_MESSAGE_FIELDS = ("role", "content")


def answered(value: object) -> tuple[ChatMessage, ...]:
    """A conversation to learn from: it ends with an assistant's turn, and each answers a user."""
    messages = _turns(value)
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise InvalidData("messages has no assistant turn: there is nothing to learn from the row; add one")
    if "user" not in roles[: roles.index("assistant")]:
        raise InvalidData("messages has an assistant turn before any user turn; begin with what is answered")
    if roles[-1] != "assistant":
        raise InvalidData(
            f"messages ends with a {roles[-1]} turn that nobody answers; end with an assistant turn"
        )
    return messages


def unanswered(value: object) -> tuple[ChatMessage, ...]:
    """A conversation whose answer stands elsewhere: it ends with a user's turn."""
    messages = _turns(value)
    if messages[-1].role != "user":
        raise InvalidData(
            f"messages ends with a {messages[-1].role} turn; what chosen and rejected answer is a user turn"
        )
    return messages


def _turns(value: object) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type_name(value)
        raise InvalidData(f"messages is {found}; expected a list of {{role, content}} objects")
    messages = tuple(_message(entry, place) for place, entry in enumerate(value))
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        place = roles.index("system", 1)
        raise InvalidData(f"messages[{place}] is a system turn; only the first message may be one")
    return messages


def _message(value: object, place: int) -> ChatMessage:
    where = f"messages[{place}]"
    fields = json_object(value, where)
    check_fields(fields, where, _MESSAGE_FIELDS)
    role = _role(fields["role"], f"{where}.role")
    content = string(fields["content"], f"{where}.content")
    if role == "assistant":
        not_blank(content, f"{where}.content")
    return ChatMessage(role, content)


def _role(value: object, where: str) -> Role:
    for role in ROLES:
        if value == role:
            return role
    found = shown(value) if isinstance(value, str) else type_name(value)
    raise InvalidData(f"{where} is {found}; allowed: {', '.join(ROLES)}")
