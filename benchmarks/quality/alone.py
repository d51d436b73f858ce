"""A piece of work in a process of its own, forked from one that has imported everything, and the memory that it took.

Importing takes seconds, a run of a small task less. The parent computes nothing with torch, so that its threads
begin in the child.
"""

from __future__ import annotations

import json
import os
import select
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.01

Mark = Callable[[], object]
"""Called twice: when the base is loaded, and when training has ended. Memory is looked at between the two."""
Work = Callable[[Mark], Mapping[str, Any]]


class WorkFailed(Exception):
    """The child ended without a result; what it said is in the log."""


def alone(work: Work) -> dict[str, Any]:
    """What `work` returns, and `peak_bytes`: the most anonymous memory between its marks above that at the first one.

    Pages of files, such as those of a base that is mapped, do not count.

    Raises:
        WorkFailed: it raised, or was killed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os._exit(_child(work, writing))
    os.close(writing)
    highest = 0
    said = b""
    while True:
        readable, _, _ = select.select([reading], [], [], SAMPLE_SECONDS)
        if said.count(b"\n") == 1:
            highest = max(highest, anonymous_bytes(pid))
        if readable:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            said += part
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if status:
        raise WorkFailed(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
    *marks, result = said.split(b"\n")
    found: dict[str, Any] = json.loads(result)
    return {**found, "peak_bytes": max(highest, *map(int, marks)) - int(marks[0]) if marks else 0}


def _child(work: Work, writing: int) -> int:
    try:
        # As the child itself sees it: the parent may look late.
        result = work(lambda: os.write(writing, f"{anonymous_bytes(os.getpid())}\n".encode()))
        with os.fdopen(writing, "wb") as answers:
            answers.write(json.dumps(result).encode())
    except BaseException:  # noqa: BLE001 - a forked child must not run the parent's way out
        traceback.print_exc()
        return 1
    return 0


def anonymous_bytes(pid: int) -> int:
    """Of a process, resident: what it has written or reserved and no file holds. 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
