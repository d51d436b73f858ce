"""The data directory as a whole: one process holds it."""

from __future__ import annotations

import fcntl
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
