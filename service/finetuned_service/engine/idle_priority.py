"""Work that takes the time that nobody else wants."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """From now on the calling thread, and threads that it starts, run when a core has nothing else to do.

    Linux's SCHED_IDLE: others go on at once when they wake up, and need not wait for the end of a time slice, as
    beside a thread that is only nice. There is no way back without a privilege. Where it is not allowed nothing changes.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def is_giving_way() -> bool:
    """Whether the calling thread runs so already."""
    return os.sched_getscheduler(0) == os.SCHED_IDLE
