"""Room on the disk that jobs write to: they are paused before it is full, and go on when there is room again.

The store is on the same disk: a job that took the last of it would stop all others and every call. What is large is
not begun without room for all of it; where a write fails for want of room all the same, what was written before is
whole, and the job is paused as well. What paused a job says how much it wants, so that it is not resumed in vain.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DISK_FULL = (
    "the server's disk has no room for the job's files: it is paused, with its last checkpoint whole, and goes on "
    "by itself when there is more room than now, or by ResumeJob"
)
_LEAST_ROOM_AGAIN_BYTES = 64 * 1024 * 1024


class NoRoom(Exception):
    """Something is not begun, for want of room on the disk; the job is to be paused."""

    def __init__(self, text: str, wanted_bytes: int) -> None:
        """`text` is for the job's user; `wanted_bytes` are beyond what must stay free."""
        super().__init__(text)
        self.text, self.wanted_bytes = text, wanted_bytes


def free_bytes_of(directory: Path) -> int:
    """Of the disk that the directory is on."""
    return shutil.disk_usage(directory).free


@dataclass(frozen=True, slots=True)
class Room:
    """The free bytes of a directory's disk, against what must stay free."""

    directory: Path
    least_bytes: int
    """0 pauses nothing ahead of time."""
    free_bytes: Callable[[Path], int] = free_bytes_of

    def shortage(self) -> str:
        """Why jobs cannot run now, as a sentence for their users; empty if they can."""
        free_bytes = self.free_bytes(self.directory)
        if free_bytes >= self.least_bytes:
            return ""
        return (
            f"the server's disk has {free_bytes / 1e6:,.0f} MB left, and {self.least_bytes / 1e6:,.0f} MB must stay "
            f"free (min_free_disk_bytes): the job is paused, with its last checkpoint whole, and {self._goes_on(0)}"
        )

    def refuse_without(self, size_bytes: int, what: str) -> None:
        """Say before `what` of that size is begun that it has no room.

        Raises:
            NoRoom: naming the sizes and the remedy.
        """
        if size_bytes > self.spare_bytes():
            raise self.lacking(size_bytes, what)

    def lacking(self, size_bytes: int, what: str) -> NoRoom:
        """What is said where there is none for `what`, foreseen or not."""
        left_bytes = self.spare_bytes() + self.least_bytes
        return NoRoom(
            f"the server's disk has {left_bytes / 1e6:,.1f} MB left, of which {self.least_bytes / 1e6:,.1f} MB must stay free "
            f"(min_free_disk_bytes), and {what} takes {size_bytes / 1e6:,.1f} MB: the job is paused without it, with its last "
            f"checkpoint whole, and {self._goes_on(size_bytes)}. 'finetuned gc' removes what has expired",
            size_bytes,
        )

    def spare_bytes(self) -> int:
        """Free beyond what must stay so; negative where there is less than that."""
        return self.free_bytes(self.directory) - self.least_bytes

    def wanted_bytes(self, told_bytes: int = 0) -> int:
        """How much must be to spare before a job goes on that has told what it wants: never the first bytes alone, or
        it would soon wait again.
        """
        return max(told_bytes, self.least_bytes, _LEAST_ROOM_AGAIN_BYTES)

    def more_than_now_bytes(self) -> int:
        """What a job wants whose write has failed, nobody knows how large: with as much as now it would fail again."""
        return max(0, self.spare_bytes()) + self.wanted_bytes()

    def _goes_on(self, told_bytes: int) -> str:
        at_bytes = self.least_bytes + self.wanted_bytes(told_bytes)
        return f"goes on by itself when {at_bytes / 1e6:,.0f} MB are free, or by ResumeJob"
