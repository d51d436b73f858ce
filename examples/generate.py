"""Writes the example datasets from their `source.toml`: templates, vocabulary, and who may use which.

    python examples/generate.py            write the files beside each source.toml
    python examples/generate.py --check    write nothing; exit 1 when a file differs from its source

A row is a template filled with vocabulary. Templates and open vocabulary belong either to training
(`train`, and `more`, which a second version gets in addition) or to `heldout`, never to both, so a
held-out score measures phrasings and words that the adapter has not seen. Every row carries its
template and vocabulary, for tests to check exactly that.

Needs only the standard library. The same sources give the same bytes on every Python from 3.11 on:
of `random`, only `seed` with a string and `random()` are used, whose sequence Python documents as stable.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NotRequired, TypedDict, cast, get_args

Split = Literal["train", "more", "heldout"]
Side = Literal["train", "heldout"]

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
DATASETS: Final = ("ops_cli", "redact")
ROOT: Final = Path(__file__).resolve().parent

_SLOT = re.compile(r"\{([a-z]+\d?)\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*\{[^\[\]]*)\]")
_ATTEMPTS_PER_ROW = 1000


@dataclass(frozen=True, slots=True)
class Slot:
    """What may stand in `{name}` of a template.

    Either `forms` (compositions of other slots) or the words of each side; a word maps to how the
    completion writes it. `shared` words belong to the task itself and stand on both sides.
    """

    name: str
    forms: tuple[str, ...]
    train: Mapping[str, str]
    heldout: Mapping[str, str]
    shared: Mapping[str, str]
    written: str | None
    """Stands for any value in the completion; None: the value's own written form."""

    def words(self, side: Side) -> Mapping[str, str]:
        """The words that rows of `side` may use, shared ones included."""
        return {**self.shared, **(self.train if side == "train" else self.heldout)}


@dataclass(frozen=True, slots=True)
class Group:
    """Templates with one meaning, by split, and how many rows each split takes from them."""

    name: str
    completion: str | None
    """The completion's template; None: the prompt's own, with the written forms in the slots."""
    templates: Mapping[Split, tuple[str, ...]]
    rows: Mapping[Split, int]


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed `source.toml`."""

    name: str
    description: str
    instruction: str
    few_shot: tuple[str, ...]
    """Training templates; the first row of each becomes an example for the prompt of a plain base."""
    slots: Mapping[str, Slot]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A dataset row, and what it was made of."""

    prompt: str
    completion: str
    split: Split
    group: str
    template: str
    vocabulary: frozenset[str]
    """The open (not shared) words in the row."""


@dataclass(frozen=True, slots=True)
class _Filled:
    spoken: str
    written: str
    open_words: frozenset[str]


class _SlotTable(TypedDict, total=False):
    forms: list[str]
    train: list[str] | dict[str, str]
    heldout: list[str] | dict[str, str]
    shared: list[str] | dict[str, str]
    written: str


class _GroupTable(TypedDict):
    name: str
    completion: NotRequired[str]
    rows: dict[Split, int]
    train: list[str]
    more: NotRequired[list[str]]
    heldout: list[str]


class _SourceTable(TypedDict):
    description: str
    instruction: str
    few_shot: list[str]
    slots: dict[str, _SlotTable]
    groups: list[_GroupTable]


def load(dataset: str) -> Source:
    """Parses `DATASET/source.toml`."""
    table = cast(
        "_SourceTable", cast("object", tomllib.loads((ROOT / dataset / "source.toml").read_text("utf-8")))
    )
    return Source(
        name=dataset,
        description=table["description"],
        instruction=table["instruction"],
        few_shot=tuple(table["few_shot"]),
        slots={name: _slot(name, slot) for name, slot in table["slots"].items()},
        groups=tuple(_group(group) for group in table["groups"]),
    )


def generate(source: Source) -> dict[Split, list[Row]]:
    """All rows of a dataset, by split, in file order; no prompt comes twice.

    Raises:
        ValueError: a group asks for more rows than its templates and vocabulary can make.
    """
    seen: set[str] = set()
    return {split: _rows(source, split, seen) for split in SPLITS}


def render(source: Source) -> dict[str, bytes]:
    """The files of a dataset: file name to content."""
    rows = generate(source)
    files = {f"{split}.jsonl": _jsonl(rows[split]) for split in SPLITS if rows[split]}
    first_of = {row.template: row for row in reversed(rows["train"])}
    card = {
        "name": source.name,
        "description": source.description,
        "rows": {split: len(rows[split]) for split in SPLITS if rows[split]},
        "instruction": source.instruction,
        "examples": [_as_json(first_of[template]) for template in source.few_shot],
    }
    files["dataset.json"] = (json.dumps(card, ensure_ascii=False, indent=2) + "\n").encode()
    return files


def _slot(name: str, table: _SlotTable) -> Slot:
    return Slot(
        name=name,
        forms=tuple(table.get("forms", ())),
        train=_written_forms(table.get("train", [])),
        heldout=_written_forms(table.get("heldout", [])),
        shared=_written_forms(table.get("shared", [])),
        written=table.get("written"),
    )


def _written_forms(words: list[str] | dict[str, str]) -> Mapping[str, str]:
    return words if isinstance(words, dict) else {word: word for word in words}


def _group(table: _GroupTable) -> Group:
    templates: dict[Split, tuple[str, ...]] = {
        "train": tuple(table["train"]),
        "more": tuple(table.get("more", ())),
        "heldout": tuple(table["heldout"]),
    }
    return Group(table["name"], table.get("completion"), templates, table["rows"])


def _rows(source: Source, split: Split, seen: set[str]) -> list[Row]:
    rng = random.Random(f"{source.name}/{split}")
    rows: list[Row] = []
    for group in source.groups:
        for index in range(group.rows.get(split, 0)):
            template = group.templates[split][index % len(group.templates[split])]
            row = _new_row(source, group, split, template, seen, rng)
            seen.add(row.prompt)
            rows.append(row)
    order = [rng.random() for _ in rows]
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


def _new_row(
    source: Source, group: Group, split: Split, template: str, seen: set[str], rng: random.Random
) -> Row:
    side: Side = "heldout" if split == "heldout" else "train"
    for _ in range(_ATTEMPTS_PER_ROW):
        values = {slot: _fill(source, slot, side, rng) for slot in _slots_in(template)}
        prompt = _substitute(template, {slot: value.spoken for slot, value in values.items()})
        repeats_a_value = len({value.spoken for value in values.values()}) < len(values)
        if prompt not in seen and not repeats_a_value:
            written = {slot: value.written for slot, value in values.items()}
            completion = _substitute(_kept(group.completion or template, written), written)
            words = frozenset[str]().union(*(value.open_words for value in values.values()))
            return Row(prompt, completion, split, group.name, template, words)
    raise ValueError(
        f"{source.name}, group {group.name}: no new {split} row from {template!r} in {_ATTEMPTS_PER_ROW} "
        "attempts; ask for fewer rows, or add templates or vocabulary"
    )


def _fill(source: Source, slot_in_template: str, side: Side, rng: random.Random) -> _Filled:
    slot = source.slots[slot_in_template.rstrip("0123456789")]
    if slot.forms:
        form = _pick(slot.forms, rng)
        parts = {part: _fill(source, part, side, rng) for part in _slots_in(form)}
        spoken = _substitute(form, {part: value.spoken for part, value in parts.items()})
        words = frozenset[str]().union(*(value.open_words for value in parts.values()))
        return _Filled(spoken, slot.written or spoken, words)
    words = slot.words(side)
    word = _pick(tuple(words), rng)
    return _Filled(
        word, slot.written or words[word], frozenset[str]() if word in slot.shared else frozenset({word})
    )


def _slots_in(template: str) -> tuple[str, ...]:
    """The slots of a template, each once, in order; `{name2}` is a second value of `name`."""
    return tuple(dict.fromkeys(_SLOT.findall(template)))


def _kept(completion: str, values: Mapping[str, str]) -> str:
    """`completion` with each bracketed part that has a slot kept if `values` fills it, else removed."""

    def part(match: re.Match[str]) -> str:
        return match[1] if all(slot in values for slot in _slots_in(match[1])) else ""

    return _OPTIONAL.sub(part, completion)


def _substitute(template: str, values: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda match: values[match[1]], template)


def _pick(items: Sequence[str], rng: random.Random) -> str:
    return items[int(rng.random() * len(items))]


def _as_json(row: Row) -> dict[str, str]:
    return {"prompt": row.prompt, "completion": row.completion}


def _jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(_as_json(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _files() -> Iterator[tuple[Path, bytes]]:
    for dataset in DATASETS:
        for name, content in render(load(dataset)).items():
            yield ROOT / dataset / name, content


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the process's exit code."""
    parser = argparse.ArgumentParser(description="Write the example datasets from their source.toml.")
    _ = parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a file is out of date"
    )
    check = cast("bool", parser.parse_args(arguments).check)
    out_of_date = [
        (path, content) for path, content in _files() if not path.is_file() or path.read_bytes() != content
    ]
    for path, content in out_of_date:
        if check:
            print(
                f"out of date: {path.relative_to(ROOT)}; run `python examples/generate.py`", file=sys.stderr
            )
        else:
            _ = path.write_bytes(content)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and out_of_date else 0


if __name__ == "__main__":
    sys.exit(main())
