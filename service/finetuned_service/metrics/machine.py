"""What the service takes of its machine: memory of its processes, room for its data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


def watch_processes(
    registry: CollectorRegistry, processes: Mapping[str, Callable[[], Sequence[int]]]
) -> None:
    """Expose the memory of processes by their part; each part tells its process ids when asked."""
    registry.register(_ProcessCollector(processes))


def watch_data_directory(registry: CollectorRegistry, directory: Path) -> None:
    """Expose the room on the data directory's file system."""
    registry.register(_DiskCollector(directory))


class _ProcessCollector(Collector):
    def __init__(self, processes: Mapping[str, Callable[[], Sequence[int]]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[GaugeMetricFamily]:
        resident = GaugeMetricFamily(
            "finetuned_process_resident_bytes",
            "Resident memory of the service's processes; a mapped base counts in each that maps it.",
            labels=["process"],
        )
        private = GaugeMetricFamily(
            "finetuned_process_private_bytes",
            "Resident memory without mapped files: what only the process itself can free.",
            labels=["process"],
        )
        for name, process_ids in self._processes.items():
            sizes = [_memory(pid) for pid in process_ids()]
            resident.add_metric([name], sum(size for size, _ in sizes))
            private.add_metric([name], sum(size - shared for size, shared in sizes))
        yield resident
        yield private


class _DiskCollector(Collector):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[GaugeMetricFamily]:
        found = os.statvfs(self._directory)
        for name, text, value in (
            (
                "free_bytes",
                "Free for the service on the data directory's disk.",
                found.f_bavail * found.f_frsize,
            ),
            ("size_bytes", "Size of the data directory's disk.", found.f_blocks * found.f_frsize),
            ("free_inodes", "Files that the data directory's disk still takes.", found.f_favail),
        ):
            yield GaugeMetricFamily(f"finetuned_data_disk_{name}", text, value=value)
        yield GaugeMetricFamily(
            "finetuned_database_bytes",
            "SQLite's files in the data directory; its log (-wal) too, which grows while a reader stays.",
            value=sum(map(_size, self._directory.glob("finetuned.db*"))),
        )


def _size(path: Path) -> int:
    """Bytes of a file; none of one that has just been removed, as SQLite removes its log."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _memory(pid: int) -> tuple[int, int]:
    """Resident and shared bytes of a process; none of one that has just ended."""
    try:
        found = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0, 0
    return found.rss, found.shared
