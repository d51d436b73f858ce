"""What sweeps of expired things remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge


class SweepMetrics:
    """Told by the sweeper."""

    def __init__(self, registry: CollectorRegistry, kinds: Iterable[str]) -> None:
        """`kinds` of things can go."""
        self._removed = Counter(
            "finetuned_swept", "Things that expired and are gone, by kind.", ["kind"], registry=registry
        )
        for kind in kinds:
            self._removed.labels(kind)
        self._freed = Counter(
            "finetuned_swept_bytes", "Bytes of files that sweeps removed.", registry=registry
        )
        self._failures = Counter("finetuned_sweep_failures", "Sweeps that failed.", registry=registry)
        self._last = Gauge(
            "finetuned_last_sweep_timestamp_seconds",
            "When the last sweep ended well; 0 before the first.",
            registry=registry,
        )

    def swept(self, removed: Mapping[str, int], freed_bytes: int) -> None:
        """A sweep ended; `removed` is by kind."""
        for kind, number in removed.items():
            self._removed.labels(kind).inc(number)
        self._freed.inc(freed_bytes)
        self._last.set_to_current_time()

    def failed(self) -> None:
        self._failures.inc()
