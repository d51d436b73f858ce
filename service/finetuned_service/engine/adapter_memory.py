"""Where the plain path's adapters are read from and placed (`memory.Memory`), and the thread that loads."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.adapter_weights import AdapterWeights
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.memory import Loaded
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.errors import FinetunedError, Internal

_log = structlog.get_logger()


class AdapterMemory:
    """Adapters of one base in the plain path's serving layout: rows of the banks, and single arrays.

    Args:
        reader: of their files.
        banks: for low-rank updates; no larger than the budget.
        budget_bytes: of everything that is placed.
    """

    def __init__(self, reader: AdapterReader, banks: LoraBanks, budget_bytes: int) -> None:
        self._reader = reader
        self._banks = banks
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._numbers = itertools.count()

    def size_bytes(self, handle: AdapterHandle) -> int:
        return self._reader.size_bytes(handle)

    def read(self, handle: AdapterHandle) -> AdapterWeights:
        return self._reader.read(handle)

    def fits(self, weights: AdapterWeights) -> bool:
        ranks = weights.lora.ranks
        return (
            all(rank <= self._banks.capacity_ranks for rank in ranks.values())
            and self._needed_bytes(weights) <= self._budget_bytes
        )

    def plan(self, weights: AdapterWeights, victims: Sequence[AdapterPlace]) -> Sequence[AdapterPlace] | None:
        rows = self._banks.plan(weights.lora.ranks, [victim.lora for victim in victims])
        if rows is None:
            return None
        free_bytes = self._budget_bytes - self._used_bytes
        for gone in range(len(victims) + 1):
            if gone >= len(rows) and free_bytes >= self._needed_bytes(weights):
                return victims[:gone]
            if gone < len(victims):
                free_bytes += victims[gone].size_bytes
        return None

    def place(self, weights: AdapterWeights) -> AdapterPlace:
        on_device = self._banks.device.type != "cpu"
        place = AdapterPlace(
            lora=self._banks.place(weights.lora.ranks),
            ops={},
            ops_bytes=weights.ops_bytes,
            shared_bytes=0 if on_device else weights.ops_bytes,
            number=next(self._numbers),
        )
        self._used_bytes += place.size_bytes
        return place

    def fill(self, place: AdapterPlace, weights: AdapterWeights) -> None:
        self._banks.fill(place.lora, weights.lora)
        device = self._banks.device
        place.ops.update(
            {
                module: tuple(op.over(lambda t: t.to(device)) for op in ops)
                for module, ops in weights.ops.items()
            }
        )

    def vacate(self, place: AdapterPlace) -> None:
        self._banks.vacate(place.lora)
        self._used_bytes -= place.size_bytes

    def _needed_bytes(self, weights: AdapterWeights) -> int:
        return self._banks.rows_bytes(weights.lora.ranks) + weights.ops_bytes


class LoaderThread:
    """Loads one adapter after another on a thread of its own (`memory.Loader`)."""

    def __init__(self, deliver: Callable[[Loaded[Any]], None]) -> None:
        """Args: deliver: called on the loader's thread with the end of each load."""
        self._deliver = deliver
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")

    def begin(self, digest: str, work: Callable[[], Any]) -> None:
        self._executor.submit(self._run, digest, work)

    def close(self) -> None:
        """Wait for the load that runs; drop those that have not begun."""
        self._executor.shutdown(cancel_futures=True)

    def _run(self, digest: str, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        weights: Any = None
        error: FinetunedError | None = None
        try:
            weights = work()
        except FinetunedError as refusal:
            error = refusal
        except Exception:  # noqa: BLE001 - whatever a load raises ends that load, not the loader
            error = Internal.opaque()
            _log.exception("adapter_load_failed", adapter_digest=digest, **error.metadata)
        self._deliver(Loaded(digest, time.monotonic() - began, weights=weights, error=error))
