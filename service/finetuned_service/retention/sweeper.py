"""The sweep in the server: what has expired goes, now and then, in a thread of its own."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection

from finetuned_service.errors import Unavailable
from finetuned_service.metrics import SweepMetrics
from finetuned_service.retention.collect import Collector
from finetuned_service.retention.garbage import Garbage, Kind
from finetuned_service.telemetry.logs import logger

_LOG = logger("retention")
_UNAVAILABLE_SECONDS = 5.0
"""Until the next try while the engine starts or the store does not answer."""


class Sweeper:
    """Collects garbage at the start and then every `interval_seconds`, until it is stopped."""

    def __init__(
        self,
        collector: Collector,
        interval_seconds: float,
        used_digests: Callable[[], Collection[str] | None],
        forget: Callable[[str], None],
        metrics: SweepMetrics,
    ) -> None:
        """`used_digests` are adapters in use or pinned, None while nobody knows.

        `forget` is told of adapter files that are gone.
        """
        self._collector = collector
        self._interval_seconds = interval_seconds
        self._used_digests = used_digests
        self._forget = forget
        self._metrics = metrics
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when no sweep is under way; one that is stops at its next item."""
        self._stopping.set()
        self._thread.join()

    def sweep(self) -> list[Garbage]:
        """One sweep; returns what is gone.

        Raises:
            Unavailable: the store does not answer, or nobody knows which adapters are in use.
        """
        used = self._used_digests()
        if used is None:
            raise Unavailable("the engine does not say which adapters it uses")
        gone: list[Garbage] = []
        for item in self._collector.collect(self._collector.find(used)):
            gone.append(item)
            if item.kind is Kind.ADAPTER_FILES:
                self._forget(f"sha256:{item.name.rpartition('/')[2]}")
            if self._stopping.is_set():
                break
        counts = {f"{kind.name.lower()}": count for kind, count in Counter(i.kind for i in gone).items()}
        freed_bytes = sum(item.size_bytes for item in gone)
        self._metrics.swept(counts, freed_bytes)
        if gone:
            _LOG.info("swept", freed_bytes=freed_bytes, **counts)
        return gone

    def _loop(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = self._interval_seconds
            try:
                self.sweep()
            except Unavailable:
                pause = min(pause, _UNAVAILABLE_SECONDS)
            except Exception:  # noqa: BLE001 - a store that fails for a moment must not end the sweeps
                self._metrics.failed()
                _LOG.exception("sweep_failed", next_sweep_seconds=pause)
