"""What the frozen weights of a model take in this process: mapped from their file, and beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.jobs.memory import memory_report
from finetuned_service.training.model import AdaptedModel
from torch import Tensor

MAPS = Path("/proc/self/maps")


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Of one base in one process."""

    mapped_bytes: int
    """Resident pages of its file, as the kernel counts them."""
    private_bytes: int
    """Weights, or their scales, that lie elsewhere."""

    @property
    def total_bytes(self) -> int:
        return self.mapped_bytes + self.private_bytes


def weight_bytes(tensors: Iterable[Tensor], file: Path) -> WeightBytes:
    """Count each of the tensors once; `file` is where they were loaded from."""
    path = str(file.resolve())
    spans = [
        tuple(int(end, 16) for end in line.split(maxsplit=1)[0].split("-"))
        for line in MAPS.read_text().splitlines()
        if line.endswith(f" {path}")
    ]
    places = {(tensor.data_ptr(), tensor.nbytes) for tensor in tensors}
    private = (size for place, size in places if not any(begin <= place < end for begin, end in spans))
    mapped = (mapping.rss_bytes for mapping in memory_report(file.name) if mapping.path == path)
    return WeightBytes(sum(mapped), sum(private))


def frozen_tensors(model: AdaptedModel) -> Iterator[Tensor]:
    """Everything that the model computes with and does not train; of packed weights also their scales."""
    trained = {id(parameter) for _, parameter in model.named_parameters()}
    for module in model.decoder.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in trained:
                yield tensor
                yield from _scales(tensor)
    yield model.head


def _scales(weight: Any) -> Iterator[Tensor]:
    """Those that bitsandbytes keeps in an object beside a 4-bit weight."""
    state = getattr(weight, "quant_state", None)
    while state is not None:
        yield from (part for part in (state.absmax, state.code, state.offset) if isinstance(part, Tensor))
        state = state.state2
