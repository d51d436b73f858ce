"""A backup's own page (`backup.json`), and copying that notes digests and tells how far it is."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from finetuned_service.errors import StartRefused
from finetuned_service.storage.files import sync_directory
from finetuned_service.vocabulary import Value

FORMAT_VERSION = 1
MANIFEST_FILE = "backup.json"
_CHUNK_BYTES = 1024 * 1024

Report = Callable[[str, int, int], None]
"""Called with what is being copied, bytes done, bytes in all."""


class BackupFile(Value):
    path: str
    """In the data directory."""
    size_bytes: int
    sha256: str


class BackupManifest(Value):
    """What a backup holds. Written last: a directory without it is no backup."""

    format_version: int
    service_version: str
    schema_version: int
    create_time: datetime
    files: tuple[BackupFile, ...]
    counts: dict[str, int]
    """Of datasets, adapter versions, jobs and bases."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Copier:
    """Copies files under one directory to another, durably, and reads back what it wrote."""

    def __init__(self, source: Path, target: Path, report: Report) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._done_bytes = 0
        self.total_bytes = 0

    def copy(self, path: str) -> BackupFile:
        """Copy one file.

        Args:
            path: of the file, in both directories.

        Raises:
            FileNotFoundError: it is not there.
        """
        source, target = self._source / path, self._target / path
        with source.open("rb") as reader:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    writer.write(chunk)
                    self._done_bytes += len(chunk)
                    self.total_bytes = max(self.total_bytes, self._done_bytes)
                    self._report(path, self._done_bytes, self.total_bytes)
                writer.flush()
                os.fsync(writer.fileno())
        # Published files are read-only, because processes map them: so are their copies.
        shutil.copymode(source, target)
        sync_directory(target.parent)
        return note(self._target, path)


def note(directory: Path, path: str) -> BackupFile:
    """A file as it lies there now."""
    with (directory / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BackupFile(path=path, size_bytes=(directory / path).stat().st_size, sha256=sha256)


def refuse_occupied(directory: Path, what: str) -> None:
    """Make the directory, unless there is something in it.

    Raises:
        StartRefused: there is, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise StartRefused(
            f"{what} {directory} cannot be written: {error.strerror}; choose another"
        ) from error
    if found:
        raise StartRefused(
            f"{what} {directory} is not empty: it holds {', '.join(found[:3])}{' …' * (len(found) > 3)}. "
            "Name a directory that does not exist"
        )


def refuse_no_room(directory: Path, needed_bytes: int) -> None:
    """Before the first byte is copied.

    Raises:
        StartRefused: the disk has less room.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise StartRefused(
            f"{directory} has {free_bytes:,} bytes free; {needed_bytes:,} are needed. Free some there, or name "
            "another place"
        )
