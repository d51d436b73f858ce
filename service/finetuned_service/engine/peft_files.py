"""Read a LoRA adapter in PEFT's layout into serving form, or refuse it whole.

The files are checked in full again, now against the sites of the base that is in memory, and must have
the digest under which they were asked for: an adapter is applied in full and as it is, or not at all.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from finetuned_service.adapters.files import WEIGHTS_FILE, MappedTensor, OpenAdapter, open_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.engine.lora_bank import LoraWeights
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.sites import SiteTable
from finetuned_service.errors import InvalidAdapterFiles, Unavailable

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class AdapterReader:
    """Reads adapters for one base: its sites and its dtype."""

    def __init__(self, table: SiteTable, dtype: torch.dtype) -> None:
        self._geometry = BaseGeometry(digest="", root_digest="", linear_shapes=table.linear_shapes())
        self._locate = table.locate()
        self._dtype = dtype

    def size_bytes(self, handle: AdapterHandle) -> int:
        """At most so many bytes will the adapter have when read; looks only at the file's size.

        Raises:
            Unavailable: if the files cannot be reached.
        """
        try:
            stored_bytes = (Path(handle.directory) / WEIGHTS_FILE).stat().st_size
        except OSError as error:
            raise _unreachable(handle) from error
        return stored_bytes * self._dtype.itemsize // 2

    @contextmanager
    def open(self, handle: AdapterHandle) -> Generator[OpenAdapter]:
        """The adapter's mapped files, looked at again; see `adapters.files.open_adapter`.

        Raises:
            InvalidAdapterFiles: if its files are not whole, do not fit the base, or are another's.
            Unavailable: if the files cannot be reached.
        """
        try:
            with open_adapter(Path(handle.directory), self._geometry, handle.digest) as opened:
                yield opened
        except OSError as error:
            raise _unreachable(handle) from error

    @torch.inference_mode()
    def read(self, handle: AdapterHandle) -> LoraWeights:
        """The whole adapter, ready to be copied into the banks.

        Raises:
            InvalidAdapterFiles: as `open`, or if it is not finite in the base's dtype.
            Unavailable: if the files cannot be reached.
        """
        with self.open(handle) as opened:
            pairs = {module: self._pair(opened, module) for module in opened.modules}
        if not all(bool(torch.isfinite(t).all()) for pair in pairs.values() for t in pair):
            raise not_finite(handle.digest, self._dtype)
        ranks: dict[int, int] = {}
        for site, (a, _) in pairs.items():
            kind, _ = self._locate[site]
            ranks[kind] = max(ranks.get(kind, 0), a.shape[0])
        return LoraWeights(pairs, ranks)

    def _pair(self, opened: OpenAdapter, module: str) -> tuple[Tensor, Tensor]:
        a, b = (_copied(opened.tensors[f"base_model.model.{module}.lora_{side}.weight"]) for side in "AB")
        scaled = b.to(torch.float32).mul(opened.config.scaling_of(module)).t()
        return a.to(self._dtype), scaled.to(self._dtype).contiguous()


def not_finite(digest: str, dtype: torch.dtype) -> InvalidAdapterFiles:
    """What an adapter is refused with that is finite as stored and not as served."""
    return InvalidAdapterFiles(
        f"adapter {digest} has values that are not finite in {dtype}; train it again with a smaller "
        "learning rate or alpha",
        metadata={"adapter_digest": digest},
    )


def _copied(tensor: MappedTensor) -> Tensor:
    """In memory of its own: the mapping ends."""
    return torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).view(tensor.shape)


def _unreachable(handle: AdapterHandle) -> Unavailable:
    return Unavailable(
        f"the files of adapter {handle.digest} cannot be read now; try again, or import it again",
        retry_after_seconds=5.0,
    )
