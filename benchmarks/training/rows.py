"""Rows to train on: real ones of uneven length, and text from examples/, as it is and as long conversations.

All learners get the same ids and the same supervised places, in files of one JSON list:
[{"input_ids": [...], "completion_mask": [0 or 1, ...]}, ...].
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetuned_service.text.supervision import EncodedRow, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Chat, ChatMessage

from benchmarks.training.docstrings import documented_functions

SOURCES = (Path("examples/redact/train.jsonl"), Path("examples/ops_cli/train.jsonl"))


@dataclass(frozen=True, slots=True)
class Rows:
    """A file of rows, and what is in it."""

    path: Path
    rows: int
    tokens: int
    supervised_tokens: int
    shortest: int
    longest: int

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.shortest} to {self.longest} tokens"


class RowFactory:
    """Writes files of rows into a directory; seeded, so that they are the same in every run."""

    def __init__(self, base: Path, directory: Path) -> None:
        self._tokenizer = BaseTokenizer.load(base)
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        pairs = [json.loads(line) for source in SOURCES for line in source.read_text().splitlines()]
        self._pairs: list[tuple[str, str]] = [(pair["prompt"], pair["completion"]) for pair in pairs]
        random.Random(0).shuffle(self._pairs)

    def short(self, rows: int) -> Rows:
        """As they are in examples/: a question and its answer each."""
        return self._write("short", [self._chat([pair]) for pair in self._pairs[:rows]])

    def uneven(self, rows: int, most_tokens: int) -> Rows:
        """Functions of Python's library and their docstrings, those of at most so many tokens."""
        pairs = list(documented_functions())
        random.Random(1).shuffle(pairs)
        short_enough = (row for pair in pairs if len((row := self._chat([pair])).token_ids) <= most_tokens)
        return self._write("uneven", list(islice(short_enough, rows)))

    def full(self, rows: int, tokens: int) -> Rows:
        """Conversations that are cut at exactly so many tokens."""
        draw = random.Random(2)
        made = [_cut(self._chat(draw.sample(self._pairs, tokens // 20)), tokens) for _ in range(rows)]
        return self._write("full", made)

    def _chat(self, pairs: Iterable[tuple[str, str]]) -> EncodedRow:
        turns = [
            turn
            for prompt, completion in pairs
            for turn in (ChatMessage("user", prompt), ChatMessage("assistant", completion))
        ]
        return encode_row(self._tokenizer, Chat(tuple(turns)))

    def _write(self, name: str, rows: list[EncodedRow]) -> Rows:
        path = (self._directory / f"{name}.json").resolve()
        path.write_text(
            json.dumps(
                [
                    {"input_ids": r.token_ids, "completion_mask": [int(flag) for flag in r.supervised]}
                    for r in rows
                ]
            )
        )
        lengths = [len(row.token_ids) for row in rows]
        supervised = sum(row.supervised_tokens for row in rows)
        return Rows(path, len(rows), sum(lengths), supervised, min(lengths), max(lengths))


def _cut(row: EncodedRow, tokens: int) -> EncodedRow:
    return EncodedRow(row.token_ids[:tokens], row.supervised[:tokens])
