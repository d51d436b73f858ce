"""Where the plain path's adapters are read from and placed (`memory.Memory`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetuned_service.engine.adapter_files import AdapterReader, refusing
from finetuned_service.engine.adapter_weights import AdapterWeights, tensors_of
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.place import AdapterPlace


class AdapterMemory:
    """Adapters of one base in the plain path's serving layout: rows of the banks, and single arrays.

    Args:
        reader: of their files.
        banks: for low-rank updates; no larger than the budget.
        budget_bytes: of everything that is placed.
        vacated: called when an adapter has left; whoever has kept something of it from a step to the next lets go.
    """

    fills_at_once = False

    def __init__(
        self,
        reader: AdapterReader,
        banks: LoraBanks,
        budget_bytes: int,
        vacated: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader = reader
        self._banks = banks
        self._budget_bytes = budget_bytes
        self._vacated = vacated
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
        with refusing(weights.digest):
            self._banks.fill(place.lora, weights.lora)
            moved = _moved(weights, self._banks.device)
            place.ops.update(
                {
                    module: tuple(op.over(lambda tensor: moved[id(tensor)]) for op in ops)
                    for module, ops in weights.ops.items()
                }
            )

    def vacate(self, place: AdapterPlace) -> None:
        self._banks.vacate(place.lora)
        self._used_bytes -= place.size_bytes
        self._vacated()

    def _needed_bytes(self, weights: AdapterWeights) -> int:
        return self._banks.rows_bytes(weights.lora.ranks) + weights.ops_bytes


def _moved(weights: AdapterWeights, device: torch.device) -> dict[int, Tensor]:
    """By the id of a tensor of single arrays, it on the device: once, however many modules share it."""
    tensors = (tensor for ops in weights.ops.values() for op in ops for tensor in tensors_of(op))
    return {key: tensor.to(device) for key, tensor in {id(tensor): tensor for tensor in tensors}.items()}
