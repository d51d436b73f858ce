"""Counts by size, kept in the engine and told in its Snapshot: Prometheus reads them a process away."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from finetuned_service.engine.messages import HistogramCounts

STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
STEP_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LOAD_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Histogram:
    """Belongs to one thread; costs a bisection an observation."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise; a value belongs to the first that it does not exceed, or lies above them all."""
        self._bounds = tuple(float(bound) for bound in bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> HistogramCounts:
        return HistogramCounts(self._bounds, tuple(self._counts), self._total)
