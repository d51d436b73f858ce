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
"""What a language model learns to write."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or two, of one class."""

    text: str
    label: str
    text_pair: str = ""
    """The second text, where the class is that of a pair; empty where it is not."""


@dataclass(frozen=True, slots=True)
class MultiLabelText:
    """A text, or two, to which any number of labels apply."""

    text: str
    labels: tuple[str, ...]
    """Sorted, each once; none where no label applies."""
    text_pair: str = ""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text, or two, with the number to predict."""

    text: str
    score: float
    """Finite."""
    text_pair: str = ""


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """A sentence cut into words, and the tag of each."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    """As many as tokens; tags of entities are `B-X`, `I-X`, `E-X`, `S-X` and `O` (BIO or BIOES)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A text, one that belongs to it, and others that do not."""

    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how similar they are."""

    sentence1: str
    sentence2: str
    score: float
    """Finite; more is more similar."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation up to a user's turn, with a better answer to it and a worse one."""

    messages: tuple[ChatMessage, ...]
    chosen: str
    rejected: str
