"""A base directory appears whole or not at all, however often its making is interrupted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from finetuned_service.storage.files import publish_directory


@contextmanager
def building(directory: Path) -> Generator[Path]:
    """A scratch directory that becomes `directory` when the block ends without an error.

    The scratch lies beside `directory`, so that the rename stays within a file system; what an
    interrupted run left there is removed first. Makers in one parent directory take turns (a lock
    that dies with its process), so that a second one finds what the first has made: ask again,
    inside the block, whether there is anything left to do; a block that leaves its scratch empty
    publishes nothing. Published files are read-only: other processes map them.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = directory.parent / f".{directory.name}.partial"
    lock = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            files = list(scratch.iterdir())
            for path in files:
                path.chmod(0o444)
            if files:
                publish_directory(scratch, directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def staging(directory: Path) -> Generator[Path]:
    """A directory for what is fetched while `directory` is being built; inside the block of `building`, whose
    lock keeps others out. It never outlives the block, and what a crash left of it is not gone on with.
    """
    fetched = directory.parent / f".{directory.name}.fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir()
    try:
        yield fetched
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
