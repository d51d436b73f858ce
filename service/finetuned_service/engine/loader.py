"""The threads that load adapters beside the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from finetuned_service.engine.idle_priority import give_way, is_giving_way
from finetuned_service.engine.memory import Loaded
from finetuned_service.errors import FinetunedError, Internal

_log = structlog.get_logger()

PATIENCE_SECONDS = 0.5
"""So long may a load wait for time that nobody else wants; then it takes its share."""


@dataclass(slots=True, eq=False)
class _Load:
    """One piece of work, which two threads may do and one of them tells of."""

    digest: str
    work: Callable[[], Any]
    told: bool = False


class LoaderThreads:
    """Load one adapter after another (`memory.Loader`).

    A load that gives way runs in time that nobody else wants, so that running streams do not wait for it. If that
    takes too long, other processes want all of it: then it is begun again with a share like everyone's, and the
    first that ends is told. Work may therefore run twice at once; a process that gives way as a whole, as a job does,
    has no share to begin it again with.

    Args:
        deliver: called on a thread of the loader with the end of each load.
        gives_way: see `Runner.idle_work_proceeds`.
        patience_seconds: how long a load may give way, from its turn on.
    """

    def __init__(
        self,
        deliver: Callable[[Loaded[Any]], None],
        *,
        gives_way: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._deliver = deliver
        self._patience_seconds = patience_seconds
        self._changed = threading.Condition()
        """Of what a load has told, and of the end."""
        self._closed = False
        self._first = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="adapter-loader", initializer=give_way if gives_way else None
        )
        self._second = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-hurry")
            if gives_way and not is_giving_way()
            else None
        )

    def begin(self, digest: str, work: Callable[[], Any]) -> None:
        load = _Load(digest, work)
        self._first.submit(self._run, load)
        if self._second is not None:
            self._second.submit(self._hurry, load)

    def close(self) -> None:
        """Wait for the load that runs; drop those that have not begun."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for executor in (self._first, self._second):
            if executor is not None:
                executor.shutdown(cancel_futures=True)

    def _hurry(self, load: _Load) -> None:
        """It is this load's turn: the one before has been told."""
        with self._changed:
            if self._changed.wait_for(lambda: load.told or self._closed, self._patience_seconds):
                return
        self._run(load)

    def _run(self, load: _Load) -> None:
        if load.told:
            return
        began = time.monotonic()
        weights: Any = None
        error: FinetunedError | None = None
        fault: Exception | None = None
        try:
            weights = load.work()
        except FinetunedError as refusal:
            error = refusal
        except Exception as found:  # noqa: BLE001 - whatever a load raises ends that load, not the loader
            error, fault = Internal.opaque(), found
        with self._changed:
            if load.told:
                return
            load.told = True
            self._changed.notify_all()
        if fault is not None and error is not None:
            _log.error("adapter_load_failed", adapter_digest=load.digest, exc_info=fault, **error.metadata)
        self._deliver(Loaded(load.digest, time.monotonic() - began, weights=weights, error=error))
