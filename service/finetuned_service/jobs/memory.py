"""What this process holds in memory, as the kernel accounts for it (Linux, proc_pid_smaps(5)).

Pages of a base's file belong to the page cache: every process that maps the file shares them, and
the kernel may drop clean ones at any time. What a job costs its machine is what only it can free.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.watching import watching

WATCH_INTERVAL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class FileMapping:
    """The resident pages of one mapped file in one process; all figures in bytes."""

    path: str
    rss_bytes: int
    shared_bytes: int
    """Also mapped by another process."""
    private_bytes: int
    """Mapped by this process alone: the page cache's, or copied."""
    copied_bytes: int
    """Written to by this process, and so its own copies; zero for weights that are only read."""

    def __str__(self) -> str:
        return (
            f"{Path(self.path).name}: {self.rss_bytes / 1e6:.1f} MB mapped, of which "
            f"{self.shared_bytes / 1e6:.1f} MB shared with other processes, "
            f"{self.copied_bytes / 1e6:.1f} MB copied"
        )


def private_memory_bytes(pid: str = "self") -> int:
    """Memory that only this process can free: anonymous pages, and those of them that are swapped out.

    Not Private_Dirty: that also counts pages of a file just written that nobody else has mapped.
    """
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return fields["Anonymous"] + fields["Swap"]


class ProcessMemory:
    """The private memory of this process, as far as somebody has looked."""

    def __init__(self) -> None:
        self.runtime_bytes = 0
        """When its work began: interpreter and libraries."""
        self.peak_bytes = 0
        self.device_peak: Callable[[], int] = lambda: 0
        """The most GPU memory it has held, in bytes; set by who computes on one."""

    def begin(self) -> None:
        """Libraries are loaded, and the work begins."""
        self.runtime_bytes = self.look()

    def look(self) -> int:
        """What it holds now."""
        found = private_memory_bytes()
        self.peak_bytes = max(self.peak_bytes, found)
        return found


MEMORY = ProcessMemory()
"""Of this process; its watchdog looks several times a second."""


def memory_report(file_name: str = "model.safetensors", pid: str = "self") -> tuple[FileMapping, ...]:
    """One entry for each mapped file of that name; several mappings of one file are summed."""
    found: dict[str, dict[str, int]] = {}
    for path, lines in _mappings(Path(f"/proc/{pid}/smaps").read_text().splitlines()):
        if Path(path).name == file_name:
            total = found.setdefault(path, {})
            for field, size_bytes in _fields(lines).items():
                total[field] = total.get(field, 0) + size_bytes
    return tuple(
        FileMapping(
            path=path,
            rss_bytes=fields["Rss"],
            shared_bytes=fields["Shared_Clean"] + fields["Shared_Dirty"],
            private_bytes=fields["Private_Clean"] + fields["Private_Dirty"],
            copied_bytes=fields["Anonymous"],
        )
        for path, fields in found.items()
    )


def free_unused_memory() -> None:
    """Give back to the kernel what the allocator keeps after a part of a job that needed much."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def memory_watchdog(budget_bytes: int, on_excess: Callable[[int], None]) -> AbstractContextManager[None]:
    """While the block runs, call `on_excess(private bytes)` once they are over the budget.

    On CPU running out of memory is SIGKILL, never an exception: a process that wants to say why it
    ends must look ahead. The call comes from a thread of its own and should end the process.
    """

    def look() -> bool:
        private_bytes = MEMORY.look()
        if private_bytes > budget_bytes:
            on_excess(private_bytes)
            return True
        return False

    return watching("memory-watchdog", WATCH_INTERVAL_SECONDS, look)


def _mappings(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The path (empty for anonymous memory) and the field lines of each mapping of a smaps file."""
    path: str | None = None
    fields: list[str] = []
    for line in lines:
        # "7f1c2a000000-7f1c3a000000 rw-p 00000000 fe:00 131 /path" opens a mapping; "Rss: 4 kB" is a field.
        if line.split(maxsplit=1)[0].endswith(":"):
            fields.append(line)
            continue
        if path is not None:
            yield path, fields
        parts = line.split(maxsplit=5)
        path, fields = parts[5] if len(parts) == 6 else "", []
    if path is not None:
        yield path, fields


def _fields(lines: Iterable[str]) -> dict[str, int]:
    """`Name: 12 kB` lines in bytes; others are left out."""
    sizes: dict[str, int] = {}
    for line in lines:
        match line.split():
            case [name, kilobytes, "kB"]:
                sizes[name.removesuffix(":")] = int(kilobytes) * 1024
            case _:
                continue
    return sizes


def count_oom_kills(
    sources: Sequence[Path] = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")),
) -> int:
    """How many processes the kernel has ended for want of memory, on this machine and in this container, since
    they started; a source that is not there counts nothing.
    """
    total = 0
    for source in sources:
        with suppress(OSError):
            for line in source.read_text().splitlines():
                name, _, count = line.partition(" ")
                total += int(count) if name == "oom_kill" else 0
    return total
