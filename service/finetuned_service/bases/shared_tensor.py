"""What a process is told of a tensor that another one holds on a GPU (`resident.py`); torch-free."""

from __future__ import annotations

from finetuned_service.vocabulary import Value


class SharedTensor(Value):
    """Where a parameter lies in the memory of another process on this machine; bytes are in base 64."""

    name: str
    dtype: str
    """As torch writes it, without `torch.`."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """In elements, of the storage."""
    device: int
    """Index of the GPU."""
    handle: str
    storage_bytes: int
    storage_offset_bytes: int
    counter: str
    counter_offset: int
    event: str
    event_sync: bool
