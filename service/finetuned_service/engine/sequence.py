"""One request on its way through the engine; owned by the engine thread, pure of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from finetuned_service.engine.allocator import Range
from finetuned_service.engine.messages import AdapterHandle, Submit


class Phase(Enum):
    """Where a sequence is. WAITING → RUNNING → ENDED, or WAITING → ENDED."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Its tokens and what it holds. Set by: the scheduler (`phase`, `kv`, `holds_adapter`, `overtaken`),
    the loop (all else).
    """

    request: Submit
    limit_tokens: int
    """Prompt and reply together: what its KV range holds."""
    arrived_seconds: float
    tokens: list[int] = field(default_factory=list[int])
    """The prompt, then what was sampled."""
    computed_tokens: int = 0
    """How many of `tokens` have their keys and values in the arena."""
    phase: Phase = Phase.WAITING
    kv: Range | None = None
    holds_adapter: bool = False
    """It keeps its adapter from being evicted."""
    overtaken: int = 0
    """How many later requests were admitted while this one found no memory for its adapter."""
    load_began_seconds: float | None = None
    load_seconds: float = 0.0
    admitted_seconds: float = 0.0
    cached_tokens: int = 0
    """How many tokens of the prompt had their keys and values copied instead of computed."""
    first_token_seconds: float | None = None
    last_token_seconds: float = 0.0

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def adapter(self) -> AdapterHandle | None:
        return self.request.adapter

    @property
    def cache_key(self) -> tuple[str, str]:
        """Whose prompts it may share keys and values with: same tenant, same weights."""
        return (self.request.tenant, self.request.adapter.digest if self.request.adapter else "")

    @property
    def whole(self) -> bool:
        """It is computed in one step, or not at all: its tokens see those after them."""
        return self.request.encode is not None

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed_tokens
