"""Keys and values of prompts that were computed before, for prompts that begin alike. Pure logic, no torch.

What an ended sequence computed stays where it lies while nobody needs the room; a new prompt that begins
with the same tokens, under the same key, has them copied instead of computed. The key says whose they are
and which weights made them (tenant, adapter digest): tokens alone are never enough. Only whole blocks are
shared, and at least one token of a prompt is computed, since its logits are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetuned_service.engine.allocator import Range, RangeAllocator

CacheKey = tuple[str, str]
"""(tenant, adapter digest, or "" for the plain base)."""
MAX_ENTRIES = 256


class Computed(Protocol):
    """A running sequence, as far as its keys and values are there."""

    @property
    def cache_key(self) -> CacheKey: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def computed_tokens(self) -> int: ...
    @property
    def kv(self) -> Range | None: ...


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """Copy the keys and values of `tokens` tokens from arena index `source` to `target`."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    tokens: tuple[int, ...]
    kv: Range


class PrefixCache:
    """Owns the ranges of ended sequences; the least recently used goes first when room is needed."""

    def __init__(self, kv: RangeAllocator, block_tokens: int, most_entries: int = MAX_ENTRIES) -> None:
        """Args: kv: where the ranges come from; block_tokens: its granularity; most_entries: of ended sequences."""
        self._kv = kv
        self._block_tokens = block_tokens
        self._most_entries = most_entries
        self._entries: dict[CacheKey, list[_Entry]] = {}
        self._by_age: dict[_Entry, CacheKey] = {}

    @property
    def used(self) -> int:
        """Tokens of KV capacity that its entries hold."""
        return sum(entry.kv.length for entry in self._by_age)

    def keep(self, key: CacheKey, tokens: Sequence[int], kv: Range) -> None:
        """Take over the range of a sequence that has computed `tokens`; frees what is not worth keeping."""
        whole = len(tokens) // self._block_tokens * self._block_tokens
        known = tuple(tokens[:whole])
        same = self._entries.get(key, [])
        if not known or any(entry.tokens[:whole] == known for entry in same):
            self._kv.free(kv)
            return
        for entry in [entry for entry in same if entry.tokens == known[: len(entry.tokens)]]:
            self._drop(entry)
        entry = _Entry(known, self._kv.shrink(kv, whole))
        self._entries.setdefault(key, []).append(entry)
        self._by_age[entry] = key
        while len(self._by_age) > self._most_entries:
            self._drop(next(iter(self._by_age)))

    def find(
        self, key: CacheKey, prompt: Sequence[int], running: Iterable[Computed] = ()
    ) -> tuple[Range, int] | None:
        """Where the longest known beginning of `prompt` lies, and how many tokens it has.

        Args:
            key: of the prompt; nothing of another key is looked at.
            prompt: token ids.
            running: sequences whose keys and values may be copied too.
        """
        best: tuple[Range, int] | None = None
        longest = (len(prompt) - 1) // self._block_tokens * self._block_tokens
        used: _Entry | None = None
        for entry in self._entries.get(key, []):
            length = self._common(prompt, entry.tokens, min(longest, len(entry.tokens)))
            if length > (best[1] if best else 0):
                best, used = (entry.kv, length), entry
        for other in running:
            if other.cache_key == key and other.kv is not None:
                length = self._common(prompt, other.tokens, min(longest, other.computed_tokens))
                if length > (best[1] if best else 0):
                    best, used = (other.kv, length), None
        if used is not None:
            self._by_age[used] = self._by_age.pop(used)  # now the youngest
        return best

    def make_room(self, length: int) -> bool:
        """Whether `length` tokens can be allocated, after dropping as few entries as that takes."""
        while not self._kv.can_allocate(length):
            if not self._by_age:
                return False
            self._drop(next(iter(self._by_age)))
        return True

    def _common(self, prompt: Sequence[int], tokens: Sequence[int], limit: int) -> int:
        length = 0
        step = self._block_tokens
        # Slices, not tokens: a prompt of thousands is compared with every known one while streams wait.
        while (end := length + step) <= limit and [*prompt[length:end]] == [*tokens[length:end]]:
            length = end
        return length

    def _drop(self, entry: _Entry) -> None:
        key = self._by_age.pop(entry)
        self._entries[key].remove(entry)
        if not self._entries[key]:
            del self._entries[key]
        self._kv.free(entry.kv)
