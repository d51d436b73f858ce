"""Datasets: validated, immutable examples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import PurePath
from typing import final

from finetuned.values.common import LabelCount, LengthSummary


class RowKind(StrEnum):
    """What the rows of a dataset hold."""

    UNKNOWN = "UNKNOWN"
    PROMPT_COMPLETION = "PROMPT_COMPLETION"
    CHAT = "CHAT"
    TEXT = "TEXT"
    LABELLED_TEXT = "LABELLED_TEXT"
    LABELLED_TOKENS = "LABELLED_TOKENS"
    PAIR = "PAIR"
    PREFERENCE = "PREFERENCE"
    LABELLED_IMAGE = "LABELLED_IMAGE"
    MULTI_LABEL_TEXT = "MULTI_LABEL_TEXT"
    SCORED_TEXT = "SCORED_TEXT"
    SCORED_PAIR = "SCORED_PAIR"


class DatasetFormat(StrEnum):
    """The file format of an upload; UNKNOWN means what the file's name ends with, or JSON lines."""

    UNKNOWN = "UNKNOWN"
    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "PARQUET"
    CONLL = "CONLL"
    IMAGE_FOLDER = "IMAGE_FOLDER"


_ENDINGS = {
    ".jsonl": DatasetFormat.JSONL,
    ".ndjson": DatasetFormat.JSONL,
    ".json": DatasetFormat.JSONL,
    ".csv": DatasetFormat.CSV,
    ".parquet": DatasetFormat.PARQUET,
    ".conll": DatasetFormat.CONLL,
    ".conllu": DatasetFormat.CONLL,
    ".zip": DatasetFormat.IMAGE_FOLDER,
}


def format_of_name(name: str) -> DatasetFormat:
    """The format that a file's name tells, `.gz` left aside; UNKNOWN where it tells none."""
    return _ENDINGS.get(PurePath(name.lower().removesuffix(".gz")).suffix, DatasetFormat.UNKNOWN)


@final
@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What was counted in the rows of a dataset."""

    characters: LengthSummary | None
    """Of all texts in a row; 0 for images."""
    labels: tuple[LabelCount, ...]
    """The most frequent first; empty where rows have none."""
    imbalance_ratio: float
    """How many times the rarest label the most frequent one is given; 0 without labels."""
    duplicate_rows: int
    """Rows that repeat what an earlier one is about; case, width of letters and white space aside."""
    conflicting_rows: int
    """Rows that give another label to it."""
    warnings: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Dataset:
    name: str
    """`tenants/{tenant}/datasets/{dataset}`"""
    digest: str
    """`sha256:` over the canonical rows."""
    row_kind: RowKind
    rows: int
    size_bytes: int
    create_time: datetime | None
    source: str
    """The word "upload", or the URI that it was imported from."""
    report: DatasetReport | None
    """None in lists, and for datasets that older servers stored."""


@final
@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload is, as told to the `progress` callback."""

    sent_bytes: int
    total_bytes: int
