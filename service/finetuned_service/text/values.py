"""What text is made of, as plain frozen values: chat messages, and examples to learn from.

Imports no library, so that every room can say "a row" without loading a tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A user's turn and the assistant's answer to it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; every assistant turn is an answer to learn."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text without roles."""

    text: str


Row = PromptCompletion | Chat | Text
