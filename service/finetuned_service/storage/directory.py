"""The data directory as a whole: one process holds it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from finetuned_service.errors import StartRefused

DATABASE_FILE = "finetuned.db"


@contextmanager
def holding(data_dir: Path, remedy: str = "stop it, or choose another data_dir") -> Generator[None]:
    """Hold the data directory: two servers on one SQLite directory would disturb each other's jobs.

    Args:
        data_dir: made if it does not exist.
        remedy: what to do where another process holds it.

    Raises:
        StartRefused: another process holds it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / ".lock").open("w")
    except OSError as error:
        raise StartRefused(
            f"data_dir {data_dir} cannot be written: {error.strerror}; choose another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartRefused(f"data_dir {data_dir} is in use by another server; {remedy}") from error
        yield


def refuse_full_disk(data_dir: Path, needed_bytes: int) -> None:
    """At start, before anything is written: a store on a full disk takes no job and keeps no checkpoint.

    Raises:
        StartRefused: less is free.
    """
    free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes < needed_bytes:
        raise StartRefused(
            f"the disk of data_dir {data_dir} has {free_bytes:,} bytes free; at least {needed_bytes:,} "
            "(min_free_disk_bytes) are needed. Free some: 'finetuned gc' removes what has expired; or give it a "
            "larger volume"
        )
