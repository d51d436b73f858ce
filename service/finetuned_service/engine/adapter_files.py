"""Read an adapter's files into serving form, or refuse it whole.

The files are checked in full again, now against the sites of the base that is in memory, and must have
the digest under which they were asked for: an adapter is applied in full and as it is, or not at all.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.memory import host_bytes
from finetuned_service.adapters.opened import AdapterOpener, MappedTensor, OpenAdapter
from finetuned_service.adapters.site_ops import AddLowRank, Project, ScaleRows, SiteOp, SubstituteParameter
from finetuned_service.engine.adapter_weights import AdapterWeights, LoadedOp, load_op, tensors_of
from finetuned_service.engine.lora_bank import LoraWeights
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.sites import SiteTable
from finetuned_service.errors import FinetunedError, InvalidAdapterFiles, ResourceExhausted, Unavailable

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class AdapterReader:
    """Reads adapters for one base: its sites and its dtype.

    Args:
        table: the sites of the base.
        geometry: of the base's files; its linear modules are those of `table`.
        dtype: of the base.
        weight_of: the weight of a linear module or a convolution of the base, by its name.
    """

    def __init__(
        self,
        table: SiteTable,
        geometry: BaseGeometry,
        dtype: torch.dtype,
        weight_of: Callable[[str], Tensor],
    ) -> None:
        self._geometry = replace(geometry, linear_shapes=table.linear_shapes())
        self._opener = AdapterOpener(self._geometry)
        self._locate = table.locate()
        self._dtype = dtype
        self._weight_of = weight_of

    def size_bytes(self, handle: AdapterHandle) -> int:
        """So many bytes at most will the adapter have when read; looks only at the header of its weights.

        Raises:
            InvalidAdapterFiles, Unavailable, ResourceExhausted: as `open`.
        """
        with refusing(handle.digest):
            elements = self._opener.elements(Path(handle.directory))
        return host_bytes(elements, self._dtype.itemsize, encodes=bool(self._geometry.width))

    @contextmanager
    def open(self, handle: AdapterHandle) -> Generator[OpenAdapter]:
        """The adapter's mapped files, looked at again; see `AdapterOpener.open`.

        Raises:
            InvalidAdapterFiles: if its files are not whole, do not fit the base, or are another's.
            Unavailable: if the files cannot be reached.
            ResourceExhausted: if this process gets no memory for them, or for what is made of them meanwhile.
        """
        with refusing(handle.digest), self._opener.open(Path(handle.directory), handle.digest) as opened:
            yield opened

    @torch.inference_mode()
    def read(self, handle: AdapterHandle) -> AdapterWeights:
        """The whole adapter, ready to be placed.

        Raises:
            InvalidAdapterFiles: as `open`, or if it is not finite in the base's dtype.
            Unavailable, ResourceExhausted: as `open`.
        """
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        ops: dict[str, tuple[LoadedOp, ...]] = {}
        with self.open(handle) as opened:
            for module in opened.modules:
                stored = [op.over(copied) for op in opened.ops(module)]
                update = next((op for op in stored if isinstance(op, AddLowRank)), None)
                # Those of convolutions are no rows of a bank.
                banked = update if module in self._locate else None
                if banked is not None:
                    pairs[module] = self._pair(banked)
                for op in stored:
                    if op is not banked:
                        loaded = self._load(module, op, update)
                        for place in (module, *(op.tied if isinstance(op, SubstituteParameter) else ())):
                            ops[place] = (*ops.get(place, ()), loaded)
            modules = len(opened.modules)
        tensors = [tensor for pair in pairs.values() for tensor in pair]
        tensors += [tensor for of_module in ops.values() for op in of_module for tensor in tensors_of(op)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise not_finite(handle.digest, self._dtype)
        return AdapterWeights(handle.digest, LoraWeights(pairs, self._ranks(pairs)), modules, ops)

    def _pair(self, update: AddLowRank[Tensor]) -> tuple[Tensor, Tensor]:
        scaled = update.b.to(torch.float32).mul(update.scaling).t()
        return update.a.to(self._dtype), scaled.to(self._dtype).contiguous()

    def _load(self, module: str, op: SiteOp[Tensor], update: AddLowRank[Tensor] | None) -> LoadedOp:
        if isinstance(op, Project):
            return op.over(torch.Tensor.float)  # over vectors that are float32, whatever made them
        weight = self._weight_of(module) if isinstance(op, ScaleRows) else None
        return load_op(op, update, weight).over(lambda tensor: tensor.to(self._dtype))

    def _ranks(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[int, int]:
        ranks: dict[int, int] = {}
        for site, (a, _) in pairs.items():
            kind, _ = self._locate[site]
            ranks[kind] = max(ranks.get(kind, 0), a.shape[0])
        return ranks


def not_finite(digest: str, dtype: torch.dtype) -> InvalidAdapterFiles:
    """What an adapter is refused with that is finite as stored and not as served."""
    return InvalidAdapterFiles(
        f"adapter {digest} has values that are not finite in {dtype}; train it again with a smaller "
        "learning rate or alpha",
        metadata={"adapter_digest": digest},
    )


def copied(tensor: MappedTensor) -> Tensor:
    """In memory of its own: the mapping ends. Streams go on meanwhile: the interpreter's lock is not held."""
    stored = np.frombuffer(tensor.data, dtype=np.uint8)
    made = torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
    ctypes.memmove(made.data_ptr(), stored.ctypes.data, stored.nbytes)
    return made


_OF_THIS_PROCESS = {errno.EMFILE: "file descriptors (ulimit -n)", errno.ENFILE: "open files (fs.file-max)"}
"""What it lacks when the system says so, and where more is allowed."""
_NO_MEMORY = ("DefaultCPUAllocator", "can't start new thread")
"""How torch and threading say it: neither has a class for it."""


@contextmanager
def refusing(digest: str) -> Generator[None]:
    """Around what takes memory or files for an adapter.

    Raises:
        ResourceExhausted: the system, or the device, has no memory or descriptors left.
        Unavailable: files cannot be reached.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        refusal = _refusal(digest, error)
        if refusal is None:
            raise
        raise refusal from error


def _refusal(digest: str, error: Exception) -> FinetunedError | None:
    """What an error of the system means for who asked for the adapter; None where it is no error of the system."""
    code = error.errno if isinstance(error, OSError) else None
    if code in _OF_THIS_PROCESS:
        return ResourceExhausted(
            f"the engine has no {_OF_THIS_PROCESS[code]} left to read adapter {digest}; allow the server more",
            metadata={"adapter_digest": digest},
        )
    if isinstance(error, torch.OutOfMemoryError):
        return ResourceExhausted(
            f"the GPU has no memory left for adapter {digest}: lower adapter_device_bytes, kv_cache_tokens or "
            "job_device_bytes, or leave the server more of it",
            metadata={"adapter_digest": digest},
        )
    if (
        code == errno.ENOMEM
        or isinstance(error, MemoryError)
        or any(said in str(error) for said in _NO_MEMORY)
    ):
        return ResourceExhausted(
            f"the engine gets no memory from the system for adapter {digest}: lower adapter_host_bytes, "
            "adapter_device_bytes or kv_cache_tokens, or allow the server more (ulimit -v, the container's memory, "
            "vm.max_map_count)",
            metadata={"adapter_digest": digest},
        )
    return _unreachable(digest) if isinstance(error, OSError) else None


def _unreachable(digest: str) -> Unavailable:
    return Unavailable(
        f"the files of adapter {digest} cannot be read now; try again, or import it again",
        retry_after_seconds=5.0,
    )
