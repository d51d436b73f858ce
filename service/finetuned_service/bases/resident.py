"""The base that a server holds on a GPU, opened by the job processes beside it: one copy for all of them.

CUDA lets a process map memory of another one (CUDA IPC: https://docs.nvidia.com/cuda/cuda-c-programming-guide,
"Interprocess Communication"); `torch.multiprocessing` passes tensors so. A base is never written and never freed while
its engine lives; once that has ended, nothing computed with it may be kept (`lender.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from finetuned_service.bases.lender import BORROWED, Lender
from finetuned_service.bases.shared_tensor import SharedTensor


def share(parameters: Iterable[tuple[str, nn.Parameter]]) -> tuple[SharedTensor, ...]:
    """Those of a module that this process has loaded to a GPU, by their names; they stay there until it ends. Nothing on a
    CPU, where processes share the pages of the file.

    Raises:
        RuntimeError: the platform does not share them, or they are another process's.
    """
    return tuple(
        _shared(name, parameter.detach()) for name, parameter in parameters if parameter.device.type == "cuda"
    )


def _shared(name: str, tensor: Tensor) -> SharedTensor:
    described: Any = reduce_tensor(tensor)[1]
    (_, shape, stride, offset, _, dtype, device, handle, storage_bytes, storage_offset_bytes, _,
     counter, counter_offset, event, event_sync) = described  # fmt: skip
    return SharedTensor(
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        shape=tuple(shape),
        stride=tuple(stride),
        offset=offset,
        device=device.index if isinstance(device, torch.device) else int(device),
        handle=_text(handle),
        storage_bytes=storage_bytes,
        storage_offset_bytes=storage_offset_bytes,
        counter=_text(counter),
        counter_offset=counter_offset,
        event=_text(event),
        event_sync=event_sync,
    )


class Resident:
    """What this process has opened of a base that another one holds; nothing until `open`."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._tensors: Mapping[str, Tensor] = {}

    def open(self, directory: Path, shared: Iterable[SharedTensor], lender: Lender) -> None:
        """Map the tensors of the base in `directory`, which `lender` holds; from here on `BORROWED` says whether they
        are still there.

        Raises:
            LenderEnded: the process that holds them is gone.
            RuntimeError: it is on another machine or GPU, or the platform does not share them; nothing is borrowed.
        """
        BORROWED.depend_on(lender)
        try:
            self._tensors = {tensor.name: _opened(tensor) for tensor in shared}
        except RuntimeError:
            BORROWED.refuse_lost()
            BORROWED.give_back()
            raise
        self._directory = directory.resolve()

    def take(self, module: nn.Module, directory: Path) -> int:
        """Let the parameters of a model just loaded from `directory` be the opened ones; returns their bytes."""
        if self._directory != directory.resolve():
            return 0
        taken = 0
        for name, parameter in module.named_parameters():
            tensor = self._tensors.get(name)
            if tensor is not None and (tensor.shape, tensor.dtype) == (parameter.shape, parameter.dtype):
                parameter.data = tensor
                taken += tensor.nbytes
        return taken


RESIDENT = Resident()
"""Of this process."""


def put_on(module: nn.Module, device: torch.device, directory: Path | None = None) -> None:
    """Move a model's parameters and buffers, in place; on the CPU they stay mapped from the base's file.

    Parameters stay the same objects, so that what else refers to them sees the move.

    Args:
        module: of transformers.
        device: where it goes.
        directory: the base's, whose resident tensors are taken instead of copies; None copies what is elsewhere.
    """
    if device.type != "cpu":
        if directory is not None:
            RESIDENT.take(module, directory)
        module.to(device)
        # A base in float32 computes in float32, its convolutions too; products do by default.
        torch.backends.cudnn.allow_tf32 = False


def _opened(tensor: SharedTensor) -> Tensor:
    opened: Tensor = rebuild_cuda_tensor(
        Tensor,
        tensor.shape,
        tensor.stride,
        tensor.offset,
        torch.UntypedStorage,
        getattr(torch, tensor.dtype),
        tensor.device,
        _bytes(tensor.handle),
        tensor.storage_bytes,
        tensor.storage_offset_bytes,
        requires_grad=False,
        ref_counter_handle=_bytes(tensor.counter),
        ref_counter_offset=tensor.counter_offset,
        event_handle=_bytes(tensor.event),
        event_sync_required=tensor.event_sync,
    )
    return opened


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
