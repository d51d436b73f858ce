"""The kinds of rows: one value type each, and what can be asked of any row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, TypeVar

from finetuned_service.text.values import (
    Chat,
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    Pair,
    Preference,
    PromptCompletion,
    Row,
    ScoredPair,
    ScoredText,
    Text,
)

OUTSIDE = "O"
"""The tag of a token that belongs to no entity."""


class RowKind(StrEnum):
    """What the rows of a dataset hold; the contract's names."""

    PROMPT_COMPLETION = "PROMPT_COMPLETION"
    CHAT = "CHAT"
    TEXT = "TEXT"
    LABELLED_TEXT = "LABELLED_TEXT"
    MULTI_LABEL_TEXT = "MULTI_LABEL_TEXT"
    SCORED_TEXT = "SCORED_TEXT"
    LABELLED_TOKENS = "LABELLED_TOKENS"
    PAIR = "PAIR"
    SCORED_PAIR = "SCORED_PAIR"
    PREFERENCE = "PREFERENCE"
    LABELLED_IMAGE = "LABELLED_IMAGE"


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image of one class."""

    image: bytes
    """The file as it came: PNG, JPEG and so on; it decodes."""
    label: str


DatasetRow: TypeAlias = (
    Row
    | LabelledText
    | MultiLabelText
    | ScoredText
    | LabelledTokens
    | Pair
    | ScoredPair
    | Preference
    | LabelledImage
)
AnyRow = TypeVar("AnyRow", bound=DatasetRow)

KIND_OF_TYPE: Mapping[type[DatasetRow], RowKind] = {
    PromptCompletion: RowKind.PROMPT_COMPLETION,
    Chat: RowKind.CHAT,
    Text: RowKind.TEXT,
    LabelledText: RowKind.LABELLED_TEXT,
    MultiLabelText: RowKind.MULTI_LABEL_TEXT,
    ScoredText: RowKind.SCORED_TEXT,
    LabelledTokens: RowKind.LABELLED_TOKENS,
    Pair: RowKind.PAIR,
    ScoredPair: RowKind.SCORED_PAIR,
    Preference: RowKind.PREFERENCE,
    LabelledImage: RowKind.LABELLED_IMAGE,
}


def kind_of(row: DatasetRow) -> RowKind:
    return KIND_OF_TYPE[type(row)]


def entity_of(tag: str) -> str:
    """What a tag of BIO or BIOES is about: `PER` of `B-PER`; a tag without a prefix is about itself."""
    return tag[2:] if tag[:2] in {"B-", "I-", "E-", "S-"} and len(tag) > 2 else tag


def labels_of(row: DatasetRow) -> tuple[str, ...]:
    """The classes that a model of this row must know, each once; for tokens the types of its entities."""
    match row:
        case LabelledText(label=label) | LabelledImage(label=label):
            return (label,)
        case MultiLabelText(labels=labels):
            return labels
        case LabelledTokens(tags=tags):
            return tuple(sorted({entity_of(tag) for tag in tags if tag != OUTSIDE}))
        case _:
            return ()


def classes_of(row: DatasetRow) -> tuple[str, ...]:
    """The outputs that a head needs for this row, each once: its labels, or for tokens every tag, `O` too."""
    return tuple(sorted(set(row.tags))) if isinstance(row, LabelledTokens) else labels_of(row)
