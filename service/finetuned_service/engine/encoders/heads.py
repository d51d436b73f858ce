"""Heads of adapters in memory: `memory.Memory` of bases that encode. A head is one small matrix and lies as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from finetuned_service.adapters.files import WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import HEAD_BIAS, HEAD_WEIGHT
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.errors import InvalidAdapterFiles, Unavailable, Unimplemented
from finetuned_service.vocabulary import Method


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head, float32."""

    weight: Tensor
    """`[outputs, width]`."""
    bias: Tensor
    """`[outputs]`."""
    modules = 1

    @property
    def size_bytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        """`[N, width]` float32 to `[N, outputs]`."""
        return functional.linear(rows, self.weight, self.bias)


@dataclass(slots=True, eq=False)
class HeadPlace:
    """Room for a head; it is the HOST form itself."""

    size_bytes: int
    head: HeadWeights | None = None
    """Set once filled."""

    @property
    def shared_bytes(self) -> int:
        return self.size_bytes


@final
class HeadMemory:
    """Adapters of one base that encodes."""

    def __init__(self, geometry: BaseGeometry, budget_bytes: int) -> None:
        self._geometry = geometry
        self._budget_bytes = budget_bytes
        self._used_bytes = 0

    def size_bytes(self, handle: AdapterHandle) -> int:
        """At most so many bytes will the adapter have when read; looks only at the file's size."""
        try:
            return (Path(handle.directory) / WEIGHTS_FILE).stat().st_size * 2  # 16 bits become 32
        except OSError as error:
            raise _unreachable(handle) from error

    @torch.inference_mode()
    def read(self, handle: AdapterHandle) -> HeadWeights:
        """The head, checked against the base in memory and its digest.

        Raises:
            InvalidAdapterFiles: its files are not whole, do not fit the base, or are another's.
            Unimplemented: it changes modules of the base as well.
            Unavailable: the files cannot be reached.
        """
        directory = Path(handle.directory)
        try:
            facts = check_adapter(directory, self._geometry, 2**31)
            tensors = load_file(directory / WEIGHTS_FILE)
        except (OSError, RuntimeError) as error:
            raise _unreachable(handle) from error
        if facts.digest != handle.digest:
            raise InvalidAdapterFiles(
                f"the files of adapter {handle.digest} now have the digest {facts.digest}; import it again",
                metadata={"adapter_digest": handle.digest},
            )
        if facts.method is not Method.HEAD:
            raise Unimplemented.feature(f"METHOD_{facts.method} on a base that encodes", "METHOD_HEAD")
        return HeadWeights(tensors[HEAD_WEIGHT].float(), tensors[HEAD_BIAS].float())

    def fits(self, weights: HeadWeights) -> bool:
        return weights.size_bytes <= self._budget_bytes

    def plan(self, weights: HeadWeights, victims: Sequence[HeadPlace]) -> Sequence[HeadPlace] | None:
        free_bytes = self._budget_bytes - self._used_bytes
        for gone in range(len(victims) + 1):
            if free_bytes >= weights.size_bytes:
                return victims[:gone]
            if gone < len(victims):
                free_bytes += victims[gone].size_bytes
        return None

    def place(self, weights: HeadWeights) -> HeadPlace:
        self._used_bytes += weights.size_bytes
        return HeadPlace(weights.size_bytes)

    def fill(self, place: HeadPlace, weights: HeadWeights) -> None:
        place.head = weights

    def vacate(self, place: HeadPlace) -> None:
        self._used_bytes -= place.size_bytes
        place.head = None


def _unreachable(handle: AdapterHandle) -> Unavailable:
    return Unavailable(
        f"the files of adapter {handle.digest} cannot be read now; try again, or import it again",
        retry_after_seconds=5.0,
    )
