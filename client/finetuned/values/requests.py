"""Requests for text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, TypeAlias, final


class Role(StrEnum):
    """Who speaks in a conversation."""

    UNKNOWN = "unknown"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Truncation(StrEnum):
    """What happens to a prompt that does not fit."""

    UNKNOWN = "UNKNOWN"
    REJECT = "REJECT"
    KEEP_END = "KEEP_END"
    KEEP_START = "KEEP_START"


@final
@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of "system", "user" and "assistant"."""
    content: str


@final
@dataclass(frozen=True, slots=True)
class RawText:
    """A prompt taken as it stands, without the base's chat template."""

    text: str


Prompt: TypeAlias = str | RawText | Sequence[Message | Mapping[str, str]]
"""A text (one user turn), a conversation, or raw text. Messages may be `{"role": ..., "content": ...}`."""


@final
@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for text; exactly one of `adapter` and `plain_base` must be given."""

    prompt: Prompt
    _: KW_ONLY
    adapter: str | None = None
    """For example "redact", "redact@prod" or "redact@3"."""
    plain_base: bool = False
    """Ask the base without any adapter."""
    max_tokens: int | None = None
    """At least 1; default 256, or what fits."""
    temperature: float | None = None
    """0 to 10; 0 is greedy, the default."""
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    """Strings that end the reply and are left out of it; at most 16."""
    stop_token_ids: Sequence[int] = ()
    truncation: Truncation | None = None
    """Default REJECT."""
    logprobs: int = 0
    """How many of the most likely tokens to tell at each position, 0 to 20; the model's own, before penalties,
    bias and a constraint."""
    ignore_eos: bool = False
    n: int | None = None
    """Replies to the prompt, 1 to 16: `Reply.samples`; more than 1 needs a temperature above 0."""
    min_tokens: int | None = None
    """At least so many tokens before the end, a stop string or a stop token; 0 to max_tokens."""
    repetition_penalty: float | None = None
    """Above 0 to 10, 1 is none: makes all tokens of prompt and reply less likely."""
    presence_penalty: float | None = None
    """-2 to 2: makes the reply's tokens less likely."""
    frequency_penalty: float | None = None
    """-2 to 2: makes the reply's tokens less likely, the more often they came."""
    logit_bias: Mapping[int, float] | None = None
    """Token id to what is added to its logit, -100 to 100."""
    json_schema: str | Mapping[str, Any] | None = None
    """The reply is JSON that this JSON Schema allows, or the beginning of it if something ends it earlier."""
    regex: str | None = None
    """The whole reply matches it, or is the beginning of a match; the syntax is that of Rust's regex crate."""
    delta_tokens: int | None = None
    """How many tokens a delta of `stream` waits for, 1 to 1048576; default 1. The first token comes at once. More
    cost server and client less. `generate`, whose deltas nobody sees, asks for all at once."""
