"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetuned_service.errors import ResourceExhausted

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFTOVER_SECONDS = 24 * 3600
"""Nothing that is still being made is older."""


@contextmanager
def refusing_full_disk() -> Generator[None]:
    """Around writing files for a caller.

    Raises:
        ResourceExhausted: the disk, or the quota of the server's user, is full.
    """
    try:
        yield
    except OSError as error:
        if not says_full_disk(error):
            raise
        raise ResourceExhausted(
            "the server's disk has no room for this; free some there, then try again",
            metadata={"subject": "server"},
        ) from error


def says_full_disk(error: Exception) -> bool:
    """Whether the disk, or a quota on it, is why.

    Libraries that are not Python (safetensors) have classes of their own, with the system's words.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


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


def sync_files(directory: Path) -> None:
    """Make a flat directory durable: the bytes of its files, and their names.

    Of gigabytes this takes a while; do it before a transaction, not inside one.
    """
    for file in directory.iterdir():
        sync_file(file)
    sync_directory(directory)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader or a crash sees the old bytes or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def publish_file(temporary: Path, final: Path) -> None:
    """Move a finished file to its immutable place; if the place is taken, the content is the same."""
    if final.exists():
        temporary.unlink()
        return
    sync_file(temporary)
    temporary.replace(final)
    sync_directory(final.parent)


def publish_directory(temporary: Path, final: Path, *, damaged: bool = False) -> None:
    """Move a finished flat directory to its immutable place; if it is taken, the content is the same, unless it was found
    `damaged`: then it is replaced. Who has opened files of it keeps those.

    May be repeated: what an earlier try has moved is found in its place.
    """
    if final.exists() and not (damaged and temporary.exists()):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    sync_files(temporary)
    hidden = hide_directory(final)
    temporary.rename(final)
    sync_directory(final.parent)
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Remove a published directory; whoever looks, also after a crash, sees all of it or nothing."""
    hidden = hide_directory(directory)
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)


def hide_directory(directory: Path) -> Path | None:
    """Take a published directory out of sight, to be removed; returns where it is now, None if it was gone.

    What a crash leaves of it is a leftover to `sweep_leftovers`.
    """
    hidden = directory.with_name(f".{directory.name}.deleted-{uuid.uuid4().hex[:8]}")
    try:
        directory.rename(hidden)
    except FileNotFoundError:
        return None
    return hidden


def sweep_leftovers(directory: Path, pattern: str) -> None:
    """Remove scratch directories that a crash has left: those of that name which are a day old."""
    for leftover in directory.glob(pattern):
        # What is being made beside this may be finished, and gone, by now.
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < time.time() - _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
