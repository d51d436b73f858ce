"""A ServeAdapter call and what comes back, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from finetuned_service.engine.messages import FinishReason, TokenLogprobs
from finetuned_service.names import AdapterSelector
from finetuned_service.text.values import ChatMessage


class Truncation(StrEnum):
    """What happens to a prompt that does not fit."""

    REJECT = "REJECT"
    KEEP_END = "KEEP_END"
    KEEP_START = "KEEP_START"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Goes through the base's chat template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Taken as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The reply is JSON that the schema allows."""

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole reply matches the pattern."""

    pattern: str


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """As `Generate` in the contract; None where the caller said nothing."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    truncation: Truncation = Truncation.REJECT
    logprobs: int = 0
    ignore_eos: bool = False
    n: int | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: JsonSchema | Regex | None = None
    delta_tokens: int | None = None

    @property
    def samples(self) -> int:
        """Replies to each input."""
        return 1 if self.n is None else self.n


@dataclass(frozen=True, slots=True)
class ServeCall:
    """One call: the weights, the inputs, the settings."""

    tenant: str
    adapter: AdapterSelector | None
    """None is the plain base, asked for by name."""
    inputs: tuple[Conversation | Content, ...]
    generation: GenerationSettings
    deadline_seconds: float | None = None
    """When the caller stops waiting, by `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The proof of which weights answered."""

    adapter_version: str
    adapter_digest: str
    base: str
    base_digest: str
    modules: int
    replica: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one reply to one input; whole characters only."""

    input: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    finish: FinishReason
    stop: str = ""
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    queue: float = 0.0
    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.queue + self.load + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Done:
    outcomes: tuple[Outcome, ...]
    """Of all samples of the first input, then of the second."""
    prompt_tokens: int
    """Each prompt once, however many samples it has."""
    cached_tokens: int
    """How many of the prompts' tokens came from the prefix cache, for the first sample of each."""
    completion_tokens: int
    timing: Timing
    """Of the slowest reply."""


ServeEvent = ServedBy | Delta | Done
