"""Prompts of an exact number of tokens, no two alike, so that no prefix cache answers in a peer's place."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

_WORD = re.compile(r"Ġ[a-z]{3,}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text and the tokens that the base's tokenizer makes of it."""

    text: str
    token_ids: tuple[int, ...]


class Prompts:
    """Draws words that are one token each; seeded, so that all peers of all runs get prompts of one kind."""

    def __init__(self, base: Path, seed: int = 0) -> None:
        self._tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        vocabulary: dict[str, int] = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
        self._words = sorted(word for word in vocabulary if _WORD.fullmatch(word))
        self._random = random.Random(seed)

    def draw(self, tokens: int) -> Prompt:
        text = "".join(self._random.choices(self._words, k=tokens)).replace("Ġ", " ")
        token_ids = tuple(self._tokenizer.encode(text).ids)
        if len(token_ids) != tokens:
            raise RuntimeError(f"a prompt of {tokens} words became {len(token_ids)} tokens")
        return Prompt(text, token_ids)
