"""Where an adapter lies in the plain path's serving layout."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.engine.adapter_weights import LoadedOp
from finetuned_service.engine.lora_bank import Placement


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPlace:
    """Rows in the LoRA banks, and the arrays of all other ops, which lie where they were read to."""

    lora: Placement
    ops: dict[str, tuple[LoadedOp, ...]]
    """By module, once filled; on a CPU the tensors of the HOST form itself."""
    ops_bytes: int
    shared_bytes: int
    """How much of `size_bytes` is the HOST form's own memory."""
    number: int
    """In the order of placing, so that rows of one adapter can be sorted together."""

    @property
    def size_bytes(self) -> int:
        return self.lora.size_bytes + self.ops_bytes

    @property
    def position(self) -> tuple[int, int]:
        """Sorting by it brings rows of one adapter together, and neighbours in the banks."""
        return (self.lora.position, self.number)
