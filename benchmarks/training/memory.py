"""The most memory that a process took above what it began with, sampled while it works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass(slots=True)
class Peak:
    """Of one process; bytes, proportional set size."""

    pid: int
    before: int
    highest: int

    def sample(self) -> None:
        self.highest = max(self.highest, _pss_bytes(self.pid))

    @property
    def above(self) -> int:
        return self.highest - self.before


@contextmanager
def peak(pid: int) -> Iterator[Peak]:
    """Watch a process during the block. What it holds at the beginning, libraries and the base, is not counted."""
    before = _pss_bytes(pid)
    found = Peak(pid, before, before)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found.sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
