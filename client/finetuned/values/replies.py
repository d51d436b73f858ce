"""What comes back from ServeAdapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar, final

from finetuned._names import short
from finetuned.values.encodings import Classification, Embedding, Tagging


class FinishReason(StrEnum):
    """Why a reply ended: end of sequence or of its constraint, a stop string or token, or its length."""

    UNKNOWN = "UNKNOWN"
    END = "END"
    STOP = "STOP"
    LENGTH = "LENGTH"


@final
@dataclass(frozen=True, slots=True)
class ServedBy:
    """The proof of which weights answered."""

    adapter_version: str
    """Empty for the plain base, as is the digest."""
    adapter_digest: str
    base: str
    base_digest: str
    modules: int
    """Modules of the base that the adapter changed for this request."""
    replica: str

    @property
    def label(self) -> str:
        """Short, for people: "redact@3", or the base's name."""
        return short(self.adapter_version or self.base)


@final
@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    logprob: float
    """Natural logarithm of the chosen token's probability at temperature 1, before penalties and the like."""
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class ReplyTokens:
    """The tokens of a whole reply."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply: whole characters, and the tokens behind them."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    input: int
    sample: int


@final
@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@final
@dataclass(frozen=True, slots=True)
class Timing:
    queue_seconds: float
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """How one reply ended."""

    finish_reason: FinishReason
    stop: str
    truncated_tokens: int


@final
@dataclass(frozen=True, slots=True)
class Started:
    """The first message of a stream."""

    served_by: ServedBy


@final
@dataclass(frozen=True, slots=True)
class Done:
    """The last message of a stream."""

    outcomes: tuple[Outcome, ...]
    usage: Usage
    timing: Timing


@final
@dataclass(frozen=True, slots=True)
class Result:
    """What one input was answered with; one form is set (none: a kind that this client does not know)."""

    input: int
    embedding: Embedding | None
    classification: Classification | None
    tagging: Tagging | None


@final
@dataclass(frozen=True, slots=True)
class ServeEvent:
    """One message of a stream; exactly one is set (none: a kind that this client does not know)."""

    started: Started | None
    delta: Delta | None
    result: Result | None
    done: Done | None


Answer = TypeVar("Answer", Embedding, Classification, Tagging)


@final
@dataclass(frozen=True, slots=True)
class Answers(Generic[Answer]):
    """The answers to all inputs of a call, in their order: `embed`, `classify` and `tag_tokens` give one."""

    items: tuple[Answer, ...]
    served_by: ServedBy
    truncated_tokens: tuple[int, ...]
    """Tokens of each input that were dropped."""
    usage: Usage
    timing: Timing

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Answer:
        return self.items[index]


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """One of the replies to a prompt."""

    text: str
    finish_reason: FinishReason
    stop: str
    """The stop string that ended it, if one did."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of `token_ids`, if the request asked for them."""


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply; of several samples it is the first, and `samples` has all."""

    text: str
    served_by: ServedBy
    finish_reason: FinishReason
    stop: str
    """The stop string that ended it, if one did."""
    truncated_tokens: int
    """Prompt tokens dropped."""
    usage: Usage
    """Of all samples together."""
    timing: Timing
    """Of the slowest sample."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    samples: tuple[Sample, ...] = ()
    """As many as `n` of the request said, in order."""
