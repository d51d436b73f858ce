"""Whether the process that lends this one memory is still there: a job computes with the base that an engine holds on a GPU.

CUDA leaves undefined what such memory holds once its owner has ended (`resident.py`), and nothing tells the one who has
opened it. So a job asks the kernel, after it has computed something and before it keeps or tells of it: what was
computed while the lender lived is sound. Torch-free. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from finetuned_service.vocabulary import Value
from finetuned_service.watching import watching

WATCH_INTERVAL_SECONDS = 0.25

_PF_EXITING = 0x4  # include/linux/sched.h: set before anything of the process is freed
_STATE, _FLAGS, _START_TICKS = 0, 6, 19  # proc_pid_stat(5), counted from the field after the name


class Lender(Value):
    """A process, told apart from later ones with its number."""

    process_id: int
    start_ticks: int
    """When it began, in clock ticks since the machine did."""

    @classmethod
    def this_process(cls) -> Self:
        return cls(process_id=os.getpid(), start_ticks=int(_stat(os.getpid())[_START_TICKS]))

    def lives(self) -> bool:
        """False as soon as it ends, before any of its memory is freed."""
        try:
            fields = _stat(self.process_id)
        except (FileNotFoundError, ProcessLookupError):  # before it is opened, or between that and reading it
            return False
        return (
            int(fields[_START_TICKS]) == self.start_ticks
            and not int(fields[_FLAGS]) & _PF_EXITING
            and fields[_STATE] not in {"Z", "X"}
        )


def _stat(process_id: int) -> list[str]:
    # The name stands in parentheses and may hold anything.
    return Path(f"/proc/{process_id}/stat").read_text(errors="replace").rpartition(")")[2].split()


class LenderEnded(Exception):
    """What this process has computed since is worth nothing."""


class Borrowed:
    """What this process has opened of another one's memory, and of whom."""

    def __init__(self) -> None:
        self._lender: Lender | None = None

    @property
    def lost(self) -> bool:
        """The lender has ended; False where nothing is borrowed."""
        return self._lender is not None and not self._lender.lives()

    def depend_on(self, lender: Lender) -> None:
        """Call it before anything of the lender's is opened.

        Raises:
            LenderEnded: it is gone already.
        """
        self._lender = lender
        self.refuse_lost()

    def give_back(self) -> None:
        """Nothing is borrowed any more."""
        self._lender = None

    def refuse_lost(self) -> None:
        """Call it between computing something and keeping it.

        Raises:
            LenderEnded: nobody knows what it was computed with.
        """
        if self.lost:
            raise LenderEnded

    def watch(self, on_loss: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, call `on_loss` once the lender has ended, from a thread of its own."""

        def look() -> bool:
            if self.lost:
                on_loss()
                return True
            return False

        return watching("lender-watch", WATCH_INTERVAL_SECONDS, look)


BORROWED = Borrowed()
"""By this process."""
