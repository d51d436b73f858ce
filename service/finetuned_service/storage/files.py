"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader or a crash sees the old bytes or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def publish_file(temporary: Path, final: Path) -> None:
    """Move a finished file to its immutable place; if the place is taken, the content is the same."""
    if final.exists():
        temporary.unlink()
        return
    sync_file(temporary)
    temporary.replace(final)
    sync_directory(final.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Move a finished directory (flat) to its immutable place; if it is taken, the content is the same."""
    if final.exists():
        shutil.rmtree(temporary)
        return
    for file in temporary.iterdir():
        sync_file(file)
    sync_directory(temporary)
    temporary.rename(final)
    sync_directory(final.parent)
