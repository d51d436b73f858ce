"""Rows of language models as ids, in a file that all sides read: what is supervised decides a loss, so it is alike.

The ids are those of our training. TRL makes its own of the same text, and its worker compares them with these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from finetuned_service.datasets.rows import parse_row
from finetuned_service.text.supervision import EncodedRow, encode_preference, encode_question, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import ChatMessage, Preference, PromptCompletion

from benchmarks.quality.reference.batches import IGNORED, Row
from benchmarks.quality.rows import RowFiles, read


def encoded_file(files: RowFiles, base: Path) -> Path:
    """Written now: `train` and `test`, each row with `ids` and `labels` (of a pair: `chosen` and `rejected`, each with
    both), and `prompts`, the ids after which the answers of the scored rows are expected.
    """
    tokenizer = BaseTokenizer.load(base)
    train, test = read(files.train), read(files.test)
    path = files.train.with_name(f"{files.train.stem}-{base.name}-ids.json")
    found = {
        "train": _encoded(tokenizer, train),
        "test": _encoded(tokenizer, test),
        "prompts": [encode_question(tokenizer, [ChatMessage("user", row["prompt"])]) for row in test],
    }
    path.write_text(json.dumps(found))
    return path


def _encoded(tokenizer: BaseTokenizer, rows: Sequence[Row]) -> list[Row]:
    made: list[Row] = []
    for row in map(parse_row, rows):
        match row:
            case Preference():
                chosen, rejected = encode_preference(tokenizer, row)
                made.append({"chosen": _labelled(chosen), "rejected": _labelled(rejected)})
            case PromptCompletion():
                made.append(_labelled(encode_row(tokenizer, row)))
            case _:
                raise ValueError(f"no language model learns from a {type(row).__name__}")
    return made


def _labelled(row: EncodedRow) -> Row:
    flags = zip(row.token_ids, row.supervised, strict=True)
    return {"ids": row.token_ids, "labels": [token if flag else IGNORED for token, flag in flags]}
