"""A base directory appears whole or not at all, however often its making is interrupted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def building(directory: Path) -> Generator[Path]:
    """A scratch directory that becomes `directory` when the block ends without an error.

    The scratch lies beside `directory`, so that the rename stays within a file system; what an
    interrupted run left there is removed first. Makers in one parent directory take turns (a lock
    that dies with its process), so that a second one finds what the first has made: ask again,
    inside the block, whether there is anything left to do; a block that leaves its scratch empty
    publishes nothing.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    scratch = directory.parent / f".{directory.name}.partial"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        if any(scratch.iterdir()):
            make_durable(scratch)
            scratch.rename(directory)
            os.fsync(lock)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def make_durable(directory: Path) -> None:
    """Bring the files of a finished directory to the disk and make them read-only: processes map them."""
    for path in sorted(directory.iterdir()):
        path.chmod(0o444)
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
