"""Large zeroed tensors whose pages come when they are written, or stand ready before that."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from finetuned_service.engine.idle_priority import give_way


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.zeros`, which on a CPU touches every page; here the kernel zeroes a page at its first use.

    So a budget may be generous: what is not used is not resident.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


_HUGE_PAGE_BYTES = 2 * 1024 * 1024


def huge_page_bytes(size_bytes: int) -> Tensor:
    """`[size_bytes]` of uint8, zeros, on huge pages as far as whole ones fit, if the kernel gives any.

    For what is filled at once: 10 MB on single pages take 2,400 page faults, which can cost more than filling
    them.
    """
    pages = mmap.mmap(-1, size_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    first = -whole.data_ptr() % _HUGE_PAGE_BYTES
    huge_bytes = size_bytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    if huge_bytes:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE, first, huge_bytes)
    return whole[first : first + size_bytes]


class ReadyBlocks:
    """Blocks of memory for what arrives one after another in about one size.

    After one is taken, the pages of the next are made in time that nobody else wants: the first use of a page
    can cost ten times what filling it costs, where a hypervisor has to find it. Costs the memory of one block.
    """

    def __init__(self) -> None:
        self._ready: Tensor | None = None
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> Tensor:
        """`[size_bytes]` of uint8; may hold what nobody wrote."""
        with self._lock:
            ready, self._ready = self._ready, None
        fits = ready is not None and size_bytes <= ready.nbytes <= size_bytes + size_bytes // 8
        block = ready[:size_bytes] if ready is not None and fits else huge_page_bytes(size_bytes)
        # Where there is no thread or memory for the next one, it is made when it is asked for, and that fails.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._make_ready, args=(size_bytes,), name="pages", daemon=True).start()
        return block

    def _make_ready(self, size_bytes: int) -> None:
        give_way()
        with contextlib.suppress(OSError):
            block = huge_page_bytes(size_bytes)
            ctypes.memset(block.data_ptr(), 0, size_bytes)  # without the interpreter's lock
            self._ready = block


class PagesAhead:
    """Memory that is used from its beginning on, whose next pages are made in time that nobody else wants.

    See `ReadyBlocks` for what that saves. Costs `ahead_bytes` of memory beyond what is used.

    Args:
        whole: never written by this.
        ahead_bytes: how far beyond the end of what has been used pages stand ready.
        touch: makes the pages at an address ready, so many bytes, without changing what is in them while others write
            there; without the interpreter's lock.
    """

    _PIECE_BYTES = 4 * _HUGE_PAGE_BYTES

    def __init__(self, whole: Tensor, ahead_bytes: int, touch: Callable[[int, int], None]) -> None:
        self._whole = whole
        self._ahead_bytes = ahead_bytes
        self._touch = touch
        self._ready_bytes = 0
        self._wanted_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kv-pages", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had: pages are made where they are used
            self._thread.start()
        self.used(0)

    def used(self, end_bytes: int) -> None:
        """The memory is used up to `end_bytes`."""
        wanted = min(end_bytes + self._ahead_bytes, self._whole.nbytes)
        if wanted > self._wanted_bytes:
            with self._changed:
                self._wanted_bytes = wanted
                self._changed.notify()

    def close(self) -> None:
        """End the thread, before the memory goes; harmless to repeat."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        give_way()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._ready_bytes < self._wanted_bytes)
                if self._closed:
                    return
                size_bytes = min(self._PIECE_BYTES, self._wanted_bytes - self._ready_bytes)
            self._touch(self._whole.data_ptr() + self._ready_bytes, size_bytes)
            self._ready_bytes += size_bytes
