"""How a worker takes jobs and runs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

JOB_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "train": (sys.executable, "-m", "finetuned_service.training"),
    "quantize": (sys.executable, "-m", "finetuned_service.quantization"),
}
"""What runs each kind of job; the path of the task is added."""


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    owner: str
    """Name of this worker in leases."""
    directory: Path
    """One directory a job."""
    max_running: int
    lease_seconds: float
    grace_seconds: float
    """How long job processes may take to write a checkpoint when the worker stops, or the job is paused."""
    kill_after_seconds: float = 10.0
    """How long a process that was asked to stop for a cancel may take."""
    renew_seconds: float = 1.0
    """The longest between renewals of a lease: each is also how a cancelled or paused job is noticed."""
    poll_seconds: float = 0.25
    """How often reports are written to the store: one transaction for all that came, not one a step."""
    min_free_disk_bytes: int = 0
    """Room on the disk below which running jobs are paused; see `jobs/room.py`."""
    patience_seconds: float = 2.0
    """How long the next job waits before a running one is stopped for it."""
    slice_seconds: float = 1800.0
    """How long a job runs before another tenant's turn comes, where places are short."""
    programs: Mapping[str, Sequence[str]] = field(default_factory=lambda: JOB_PROGRAMS)
