"""What every format reads a file into: one record for each row to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from finetuned_service.errors import InvalidData


@dataclass(frozen=True, slots=True)
class Record:
    """One row to be, or what is wrong with it."""

    place: str
    """Where it stands in the file: `line 17`, `row 3`, `entry 'cat/1.png'`."""
    content: object | InvalidData
    """Decoded as JSON would be (an image may be bytes); an error is one of this record, and reading goes on."""


Records: TypeAlias = Iterator[Record]
