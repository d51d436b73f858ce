"""Files on their way out, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileChunk:
    """A piece of one file."""

    file_name: str
    offset: int
    data: bytes


def chunks_of(file_name: str, file: BinaryIO) -> Iterator[FileChunk]:
    """An open file from where it stands to its end, under this name."""
    offset = 0
    while data := file.read(CHUNK_BYTES):
        yield FileChunk(file_name, offset, data)
        offset += len(data)
