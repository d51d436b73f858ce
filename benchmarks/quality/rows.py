"""Rows of every study, made of what the project has: its example data, and scikit-learn's digits.

Each study has two files, of rows to learn from and of rows to be scored on, which every learner gets. `reviews.py` writes
those of numbers.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.shapes import shape_of

from benchmarks.quality.reviews import reviews
from examples.digits import write_rows

HOME = Path("build/bench/quality/rows")
EXAMPLES = Path("examples")
Row = dict[str, Any]

_PLACEHOLDER = re.compile(r"\[([A-Z]+)\]")
_OPTION = re.compile(r"--([a-z]+)")
_WORD = re.compile(r"\w+(?:[-.@]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class RowFiles:
    """Where the rows of a study lie."""

    train: Path
    test: Path

    @property
    def digest(self) -> str:
        """Of both files."""
        return hashlib.sha256(self.train.read_bytes() + b"\n" + self.test.read_bytes()).hexdigest()

    @property
    def train_rows(self) -> int:
        return len(read(self.train))

    @property
    def kind(self) -> RowKind:
        """Of the rows to learn from."""
        return shape_of(read(self.train)[0]).kind


def rows_of(study: str, test_rows: int, train_rows: int | None = None) -> RowFiles:
    """The files of a study's rows, written now; of those to be scored, and to learn from, at most so many."""
    HOME.mkdir(parents=True, exist_ok=True)
    name = study if train_rows is None else f"{study}-{train_rows}"
    files = RowFiles((HOME / f"{name}-train.jsonl").resolve(), (HOME / f"{name}-test.jsonl").resolve())
    if study == "digits":
        # Of the digits 5 to 9, which the base has not seen, every fifth.
        write_rows(files.train, files.test)
        return files
    if study == "ratings":
        train, test = reviews("train"), reviews("test")
    else:
        dataset, made = _MADE[study]
        train, test = (made(read(EXAMPLES / dataset / f"{part}.jsonl")) for part in ("train", "heldout"))
    for path, found in ((files.train, train[:train_rows]), (files.test, test[:test_rows])):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    return files


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def intents(rows: Sequence[Row]) -> list[Row]:
    """Which of nine commands a request is for."""
    return [{"text": row["prompt"], "label": row["completion"].split()[1]} for row in rows]


def options(rows: Sequence[Row]) -> list[Row]:
    """Which options the command for a request has; some have none."""
    return [{"text": row["prompt"], "labels": sorted(_OPTION.findall(row["completion"]))} for row in rows]


def commands(rows: Sequence[Row]) -> list[Row]:
    """A request and the command for it, to be found among all others."""
    return [{"anchor": row["prompt"], "positive": row["completion"]} for row in rows]


def similarity(rows: Sequence[Row]) -> list[Row]:
    """Two requests, and the share of the words of their commands that both have; every other pair is of one command."""
    draw, made = random.Random("similarity"), list[Row]()
    for number, row in enumerate(rows):
        name = row["completion"].split()[1]
        others = [
            other
            for other in rows
            if other is not row and (number % 2 or other["completion"].split()[1] == name)
        ]
        other = draw.choice(others)
        first, second = (set(one["completion"].split()[1:]) for one in (row, other))
        score = len(first & second) / len(first | second)
        made.append({"sentence1": row["prompt"], "sentence2": other["prompt"], "score": score})
    return made


def personal_data(rows: Sequence[Row]) -> list[Row]:
    """Words, and the tags of those that the completion has placeholders for."""
    return [tagged(row["prompt"], row["completion"]) for row in rows]


def answers(rows: Sequence[Row]) -> list[Row]:
    """As they are: a text, and the same without personal data."""
    return list(rows)


def preferences(rows: Sequence[Row]) -> list[Row]:
    """The redacted text before the same with one mistake: what was personal is left, or its placeholder is another."""
    draw, made = random.Random("preferences"), list[Row]()
    for row in rows:
        text, redacted = row["prompt"], row["completion"]
        spans = personal_spans(text, redacted)
        if not spans:
            continue
        wrong = draw.randrange(len(spans))
        begin, end, label = spans[wrong]
        others = sorted({"NAME", "PHONE", "EMAIL"} - {label})
        mistake = text[begin:end] if draw.random() < 0.5 else f"[{draw.choice(others)}]"
        parts = _PLACEHOLDER.split(redacted)
        told = (f"[{part}]" if place % 2 else part for place, part in enumerate(parts))
        rejected = "".join(mistake if place == 2 * wrong + 1 else part for place, part in enumerate(told))
        made.append({"prompt": text, "chosen": redacted, "rejected": rejected})
    return made


def personal_spans(text: str, redacted: str) -> list[tuple[int, int, str]]:
    """Where of a text the placeholders of the same text, such as `[NAME]`, stand: begin, end, and their names.

    Raises:
        ValueError: the two are not the same text.
    """
    parts = _PLACEHOLDER.split(redacted)
    # Text and names of placeholders in turn.
    pattern = "".join("(.+?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{redacted!r} is not {text!r} with placeholders")
    return [(*match.span(number), label) for number, label in enumerate(parts[1::2], 1)]


def tagged(text: str, redacted: str) -> Row:
    """The words of a text with BIO tags, from the same text with placeholders.

    Raises:
        ValueError: the two are not the same text.
    """
    spans = personal_spans(text, redacted)
    tokens: list[str] = []
    tags: list[str] = []
    begun = None
    for word in _WORD.finditer(text):
        span = next((span for span in spans if span[0] <= word.start() and word.end() <= span[1]), None)
        tokens.append(word.group())
        tags.append("O" if span is None else f"{'I' if span == begun else 'B'}-{span[2]}")
        begun = span
    return {"tokens": tokens, "tags": tags}


_MADE: Mapping[str, tuple[str, Callable[[Sequence[Row]], list[Row]]]] = {
    "intents": ("ops_cli", intents),
    "options": ("ops_cli", options),
    "commands": ("ops_cli", commands),
    "similarity": ("ops_cli", similarity),
    "personal_data": ("redact", personal_data),
    "answers": ("redact", answers),
    "answers_nf4": ("redact", answers),
    "answers_int8": ("redact", answers),
    "redaction": ("redact", answers),
    "preferences": ("redact", preferences),
    "preferences_nf4": ("redact", preferences),
}
