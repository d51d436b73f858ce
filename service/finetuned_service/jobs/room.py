"""Room on the disk that jobs write to: they are paused before it is full, and go on when there is room again.

The store is on the same disk: a job that took the last of it would stop all others and every call. Where a
write fails for want of room all the same, what was written before is whole, and the job is paused as well.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

DISK_FULL = (
    "the server's disk has no room for the job's files: it is paused, with its last checkpoint whole, and goes on "
    "by itself when there is room again, or by ResumeJob"
)
_LEAST_ROOM_AGAIN_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Room:
    """The free bytes of a directory's disk, against what must stay free."""

    directory: Path
    least_bytes: int
    """0 pauses nothing ahead of time."""

    def shortage(self) -> str:
        """Why jobs cannot run now, as a sentence for their users; empty if they can."""
        free_bytes = self._free_bytes()
        if free_bytes >= self.least_bytes:
            return ""
        return (
            f"the server's disk has {free_bytes / 1e6:,.0f} MB left, and {self.least_bytes / 1e6:,.0f} MB must stay "
            "free (min_free_disk_bytes): the job is paused, with its last checkpoint whole, and goes on by itself "
            "when there is twice as much, or by ResumeJob"
        )

    def returned(self) -> bool:
        """Whether jobs that wait for room may go on: not at the first byte, or they would soon wait again."""
        return self._free_bytes() >= max(2 * self.least_bytes, _LEAST_ROOM_AGAIN_BYTES)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free
