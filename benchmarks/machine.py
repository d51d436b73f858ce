"""The machine that figures depend on, and whether it was quiet."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

_WANTED = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> str:
    """GPU if there is one, processor, instructions, cores, memory, versions, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    instructions = " ".join(flag for flag in _WANTED if flag in flags)
    memory = psutil.virtual_memory().total / 2**30
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{model or platform.machine()}, {instructions}, {cores()} cores, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def busy_cores(seconds: float = 3.0) -> float:
    """Cores that anything on this machine keeps busy while we wait: close to 0, or figures are worth little.

    Time stolen by the machine's host counts as busy.
    """
    before = psutil.cpu_times()
    time.sleep(seconds)
    after = psutil.cpu_times()
    # Linux's order: user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen; what
    # follows is part of these.
    busy = [sum(times[:3]) + sum(times[5:8]) for times in (before, after)]
    return (busy[1] - busy[0]) / seconds


def read_bandwidth(megabytes: int = 1024, repeats: int = 5) -> float:
    """Bytes that all cores together read from memory in a second: the best of several sweeps.

    The sweep is an addition of all of a buffer much larger than any cache, which takes less time to add
    than to read.
    """
    buffer = torch.ones(megabytes * 2**20 // 4, dtype=torch.float32)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        buffer.sum()
        best = max(best, buffer.nbytes / (time.perf_counter() - began))
    return best


def resident_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of processes: pages that several share are divided among them."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]
