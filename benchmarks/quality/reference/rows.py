"""Rows as a transformers model takes them: ids by transformers' own tokenizer, images as tensors. Those of language
models come as ids (`../encoded.py`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.quality.reference.batches import Row
from examples.digits import as_input


def raw(path: str) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def images(rows: Sequence[Row]) -> list[Row]:
    """`pixels` `[1, 32, 32]`."""
    return [{**row, "pixels": as_input(base64.b64decode(row["image"]))} for row in rows]


def texts(base: Path, rows: Sequence[Row]) -> list[Row]:
    """`ids` of `text`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    return [{**row, "ids": tokenizer(row["text"])["input_ids"]} for row in rows]


def words(base: Path, rows: Sequence[Row]) -> list[Row]:
    """`ids` of `tokens`, and the `places` of each word's first piece."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    made: list[Row] = []
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True)
        of_place: list[int | None] = encoded.word_ids()
        places = [of_place.index(number) for number in range(len(row["tokens"]))]
        made.append({**row, "ids": encoded["input_ids"], "places": places})
    return made


def pairs(base: Path, rows: Sequence[Row]) -> list[Row]:
    """`first` and `second`: ids of `anchor` and `positive`, or of both sentences."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    first, second = ("sentence1", "sentence2") if "sentence1" in rows[0] else ("anchor", "positive")
    return [
        {
            **row,
            "first": tokenizer(row[first])["input_ids"],
            "second": tokenizer(row[second])["input_ids"],
        }
        for row in rows
    ]
