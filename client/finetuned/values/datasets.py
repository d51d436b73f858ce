"""Datasets: validated, immutable examples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import final


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
    """The file format of an upload; UNKNOWN means JSON lines."""

    UNKNOWN = "UNKNOWN"
    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "PARQUET"
    CONLL = "CONLL"
    IMAGE_FOLDER = "IMAGE_FOLDER"


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


@final
@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload is, as told to the `progress` callback."""

    sent_bytes: int
    total_bytes: int
