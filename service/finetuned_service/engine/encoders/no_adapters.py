"""`memory.Memory` of bases that take no adapters yet: every one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from finetuned_service.engine.memory import Place, Weights
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.errors import Unimplemented


class NoAdapters:
    shares_host_copy = False

    def size_bytes(self, handle: AdapterHandle) -> int:
        raise _refusal(handle)

    def read(self, handle: AdapterHandle) -> Weights:
        raise _refusal(handle)

    def fits(self, weights: Weights) -> bool:
        return False

    def plan(self, weights: Weights, victims: Sequence[Place]) -> Sequence[Place] | None:
        return None

    def place(self, weights: Weights) -> NoReturn:
        raise NotImplementedError

    def fill(self, place: Place, weights: Weights) -> None:
        raise NotImplementedError

    def vacate(self, place: Place) -> None:
        raise NotImplementedError


def _refusal(handle: AdapterHandle) -> Unimplemented:
    return Unimplemented.feature(f"adapter {handle.digest} on a base that encodes", "the plain base")
