"""What a job is expected to take and what it took, in words."""

from __future__ import annotations

from typing import Final

from finetuned.cli.output import duration, size
from finetuned.values.jobs import Estimate, EstimateBasis, JobUsage

_BASES: Final = {
    EstimateBasis.ARITHMETIC: "at least, by sizes",
    EstimateBasis.EARLIER_JOB: "as an earlier job like it took",
    EstimateBasis.MEASURED: "measured",
}


def expected(estimate: Estimate) -> str:
    """All that is known: "107 steps, 21,721 tokens, 3:12, 846.0 MiB of memory (measured; allowed: 5.9 GiB)"."""
    parts = [f"{estimate.steps:,} steps", f"{estimate.tokens:,} tokens"]
    if estimate.duration_seconds is not None:
        parts.append(duration(estimate.duration_seconds))
    if estimate.memory_bytes:
        parts.append(f"{size(estimate.memory_bytes)} of memory")
    if estimate.device_memory_bytes:
        parts.append(f"{size(estimate.device_memory_bytes)} on the GPU")
    notes = [_BASES[estimate.basis]] if estimate.basis in _BASES else []
    if estimate.memory_budget_bytes:
        notes.append(f"allowed: {size(estimate.memory_budget_bytes)}")
    if estimate.device_memory_budget_bytes:
        notes.append(f"on the GPU: {size(estimate.device_memory_budget_bytes)}")
    return ", ".join(parts) + (f" ({'; '.join(notes)})" if notes else "")


def taken(usage: JobUsage) -> str:
    """Time and memory, each with how far the estimate was off: "3:40 (estimate -13%), 858.1 MiB (estimate +1%)"."""
    parts: list[str] = []
    if usage.duration_seconds is not None:
        parts.append(duration(usage.duration_seconds) + _error(usage.duration_error))
    if usage.memory_bytes:
        parts.append(f"{size(usage.memory_bytes)} of memory" + _error(usage.memory_error))
    if usage.device_memory_bytes:
        parts.append(f"{size(usage.device_memory_bytes)} on the GPU")
    return ", ".join(parts)


def _error(error: float | None) -> str:
    return "" if error is None else f" (estimate {error:+.0%})"
