"""Large zeroed tensors that take no memory until they are written."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.zeros`, which on a CPU touches every page; here the kernel zeroes a page at its first use.

    So a budget may be generous: what is not used is not resident.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
