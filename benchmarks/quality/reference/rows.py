"""Rows as a transformers model takes them: ids and labels by transformers' own tokenizer, images as tensors."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.datasets.rows import parse_row
from finetuned_service.text.supervision import EncodedRow, encode_preference, encode_question, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import ChatMessage
from torch import Tensor
from transformers import AutoTokenizer

from examples.digits import as_input

IGNORED = -100
Row = dict[str, Any]


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
    """`first` and `second`: ids of `anchor` and `positive`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    return [
        {
            **row,
            "first": tokenizer(row["anchor"])["input_ids"],
            "second": tokenizer(row["positive"])["input_ids"],
        }
        for row in rows
    ]


def conversations(base: Path, rows: Sequence[Row]) -> list[Row]:
    """`ids`, and `labels` of what is supervised: the ids that our training has, as data is to be the same."""
    tokenizer = BaseTokenizer.load(base)
    return [_labelled(encode_row(tokenizer, parse_row(row))) for row in rows]


def questions(base: Path, rows: Sequence[Row]) -> list[list[int]]:
    """Ids after which the answers of rows are expected."""
    tokenizer = BaseTokenizer.load(base)
    return [encode_question(tokenizer, [ChatMessage("user", row["prompt"])]) for row in rows]


def preferences(base: Path, rows: Sequence[Row]) -> list[Row]:
    """`chosen` and `rejected`, each with `ids` and `labels`."""
    tokenizer = BaseTokenizer.load(base)
    both = [encode_preference(tokenizer, parse_row(row)) for row in rows]
    return [{"chosen": _labelled(chosen), "rejected": _labelled(rejected)} for chosen, rejected in both]


def padded(ids: Sequence[Sequence[int]], filler: int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """`[N, longest]` of ids, and a mask of those that are no filler."""
    longest = max(map(len, ids))
    made, mask = torch.full((len(ids), longest), filler), torch.zeros(len(ids), longest, dtype=torch.long)
    for number, row in enumerate(ids):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        made[number, where] = torch.tensor(row)
        mask[number, where] = 1
    return made, mask


def _labelled(row: EncodedRow) -> Row:
    flags = zip(row.token_ids, row.supervised, strict=True)
    return {"ids": row.token_ids, "labels": [token if flag else IGNORED for token, flag in flags]}
