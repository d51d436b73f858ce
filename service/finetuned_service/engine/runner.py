"""What the engine's loop needs of whatever computes its steps: the plain path or the native one.

A model is one base in memory. Opened with the sizes of an engine it gives a runner, which owns the keys
and values of the running sequences and the adapters in serving layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.memory import Memory
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.prefix_cache import PrefixCopy
from finetuned_service.engine.sequence import Sequence as TokenSequence

PlaceOf = Callable[[TokenSequence], Any]
"""The place of a sequence's adapter, as the runner's `memory` gave it; None for the plain base."""


@dataclass(frozen=True, slots=True, eq=False)
class StepLogits:
    """What one forward says."""

    logits: Tensor
    """`[S, vocabulary]`, of the rows that choose a token, or of all rows if that was asked for."""
    chosen: tuple[TokenSequence, ...]
    """The sequences that choose a token, in the order of their rows."""
    greedy: Sequence[int | None]
    """Of each row the first of its highest logits; None if a logit is not a number or that is infinite. Empty if
    all logits were asked for."""
    encoded: tuple[tuple[TokenSequence, Tensor], ...] = ()
    """What inputs became that are encoded in this step: `[1, width]`, or `[tokens, width]`; float32, on the CPU."""


class Runner(Protocol):
    """Computes the steps of one loop."""

    @property
    def memory(self) -> Memory[Any, Any]:
        """Where its adapters are read from and placed."""
        ...

    @property
    def kv_block_tokens(self) -> int:
        """A sequence's keys and values begin at a multiple of it."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Keys and values of prompts may be copied: to the same bits as computed ones where those do not depend on
        batch-mates and chunks, elsewhere to values that another batch might have given.
        """
        ...

    @property
    def idle_work_proceeds(self) -> bool:
        """What runs beside it when a core has nothing else to do gets on: its threads sleep while they wait."""
        ...

    def copy_kv(self, copy: PrefixCopy) -> None:
        """Copy keys and values of all layers inside the arena; only if `shares_prefixes`."""
        ...

    @property
    def kv_bytes(self) -> int:
        """The most that keys and values take."""
        ...

    def run(self, chunks: Sequence[Chunk], place_of: PlaceOf, *, all_logits: bool = False) -> StepLogits:
        """One forward for all chunks; each sequence holds its KV range and its adapter."""
        ...

    def draw(
        self, rows: Sequence[Tensor], samplings: Sequence[Sampling], uniforms: Sequence[float]
    ) -> list[int]:
        """A token for each of `rows`, scores `[vocabulary]`; arguments as of `draws.draw_tokens`."""
        ...

    def warm(self) -> bool:
        """Prepare one thing that makes later steps faster, in a moment in which nothing is to be computed; False if
        there is nothing left to prepare.
        """
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


class Model(Protocol):
    """One frozen base in memory."""

    @property
    def encodes(self) -> bool:
        """Its sequences are encoded, and not continued."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def directory(self) -> Path:
        """Where its files are, the tokenizer's too."""
        ...

    @property
    def end_token_ids(self) -> frozenset[int]: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def vocabulary_tokens(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """All weights in memory, tied ones once."""
        ...

    @property
    def path(self) -> str:
        """How it computes, for people."""
        ...

    def share(self) -> tuple[SharedTensor, ...]:
        """Its weights on a GPU, for job processes to open; none on a CPU. Only the process that loaded them may tell
        of them, once; they then stay until it ends.

        Raises:
            RuntimeError: the platform shares no memory of a GPU between processes.
        """
        ...

    def open(self, config: EngineConfig) -> Runner:
        """What computes the steps of one engine."""
        ...

    def fingerprint(self) -> str:
        """The base's digest from the weights in memory now; reads all of them."""
        ...
