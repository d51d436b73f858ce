"""What a process holds at rest, round after round, and whether it grows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from finetuned_service.storage.directory import DATABASE_FILE

MIB = 2**20
WARM_UP_SHARE = 1 / 3
"""Of the rounds: caches fill, code is compiled, the arena of the KV cache is touched for the first time."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The most that a quantity may grow between the first and the last round after the warm-up."""

    absolute: float
    share: float = 0.0
    """Of its level; the larger of the two counts."""

    def of(self, level: float) -> float:
        return max(self.absolute, self.share * level)


ALLOWANCES: Mapping[str, Allowance] = {
    # What a heap that is used at random still moves by; a leak of 2 KiB a call shows after 4,000 calls.
    "rss_bytes": Allowance(8 * MIB, 0.02),
    "anonymous_bytes": Allowance(8 * MIB, 0.02),
    # At rest they are counted exactly; one may be open by chance (a connection that is being closed).
    "descriptors": Allowance(1),
    "threads": Allowance(1),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """One quantity of one process over the rounds after the warm-up."""

    process: str
    quantity: str
    first: float
    last: float
    slope_per_hour: float
    grown: float
    """Slope times time: what a straight line through the rounds gains; no more than they differ, as a line through one
    step of a count does.
    """
    allowed: float

    @property
    def flat(self) -> bool:
        return self.grown <= self.allowed


def read(pid: int) -> dict[str, float]:
    """The quantities of `ALLOWANCES` of a process, now; and `pss_bytes`, which is no measure of growth: it rises when
    a neighbour ends that mapped the same files.
    """
    process = psutil.Process(pid)
    memory = process.memory_full_info()
    return {
        "rss_bytes": float(memory.rss),
        "anonymous_bytes": _anonymous_bytes(pid),
        "descriptors": float(_descriptors(pid)),
        "threads": float(process.num_threads()),
        "pss_bytes": float(memory.pss),
    }


def _descriptors(pid: int) -> int:
    """Without those of the store: SQLite keeps the file of a connection that closes beside others for the next one (its
    os_unix.c, "pUnused"), so there are as many as there once were connections at once. Lost connections exhaust the pool
    instead, and calls fail.
    """
    open_files = Path(f"/proc/{pid}/fd")
    return sum(_target(link) != DATABASE_FILE for link in open_files.iterdir())


def _target(link: Path) -> str:
    """The name of the file; "" of one that has been closed meanwhile."""
    try:
        return link.readlink().name
    except FileNotFoundError:
        return ""


def _anonymous_bytes(pid: int) -> float:
    """What belongs to no file: heaps, stacks, packed weights, keys and values."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon; Linux 4.5 or newer is needed")


def growth(process: str, quantity: str, seconds: Sequence[float], values: Sequence[float]) -> Growth:
    """A straight line through the rounds after the warm-up, by Theil and Sen: the median of the slopes of all
    pairs, which single high rounds do not move.

    Args:
        process: its name.
        quantity: a key of `ALLOWANCES`.
        seconds: when each round ended.
        values: of the quantity, at the end of each round.

    Raises:
        ValueError: after the warm-up there are fewer than two rounds.
    """
    cut = int(len(values) * WARM_UP_SHARE)
    when, kept = seconds[cut:], values[cut:]
    if len(kept) < 2:
        raise ValueError(f"{len(values)} rounds are too few; at least 2 must be left after the warm-up")
    slope = statistics.median(
        (kept[j] - kept[i]) / (when[j] - when[i]) for i in range(len(kept)) for j in range(i + 1, len(kept))
    )
    allowed = ALLOWANCES[quantity].of(statistics.median(kept))
    grown = min(slope * (when[-1] - when[0]), max(kept) - min(kept))
    return Growth(process, quantity, kept[0], kept[-1], 3600 * slope, grown, allowed)
