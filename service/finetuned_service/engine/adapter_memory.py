"""Where the engine's adapters are read from and placed: `memory.Memory` over PEFT files and banks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from finetuned_service.engine.lora_bank import LoraBanks, LoraWeights, Placement
from finetuned_service.engine.memory import Loaded
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.peft_files import AdapterReader
from finetuned_service.errors import FinetunedError, Internal

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AdapterMemory:
    """LoRA adapters of one base."""

    reader: AdapterReader
    banks: LoraBanks
    shares_host_copy = False

    def size_bytes(self, handle: AdapterHandle) -> int:
        return self.reader.size_bytes(handle)

    def read(self, handle: AdapterHandle) -> LoraWeights:
        return self.reader.read(handle)

    def fits(self, weights: LoraWeights) -> bool:
        return all(rank <= self.banks.capacity_ranks for rank in weights.ranks.values())

    def plan(self, weights: LoraWeights, victims: Sequence[Placement]) -> Sequence[Placement] | None:
        return self.banks.plan(weights.ranks, victims)

    def place(self, weights: LoraWeights) -> Placement:
        return self.banks.place(weights.ranks)

    def fill(self, place: Placement, weights: LoraWeights) -> None:
        self.banks.fill(place, weights)

    def vacate(self, place: Placement) -> None:
        self.banks.vacate(place)


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
