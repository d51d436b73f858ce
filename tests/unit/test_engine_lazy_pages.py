"""Budgets take no memory until they are used."""

from __future__ import annotations

import threading

import psutil
import pytest
import torch
from finetuned_service.engine.lazy_pages import PagesAhead, ReadyBlocks, huge_page_bytes, lazy_zeros
from finetuned_service.engine.native.build import library_path
from finetuned_service.engine.native.library import Library

CPU = torch.device("cpu")
MIB = 1024 * 1024


def test_only_written_pages_are_resident():
    process = psutil.Process()
    before = process.memory_info().rss
    tensor = lazy_zeros((2, 128 * MIB), torch.bfloat16, CPU)
    assert process.memory_info().rss - before < 64 * MIB
    tensor[1, : 64 * MIB] = 1.0
    assert process.memory_info().rss - before > 120 * MIB


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1,)])
def test_it_is_zeros(shape):
    tensor = lazy_zeros(shape, torch.float32, CPU)
    assert torch.equal(tensor, torch.zeros(shape))
    tensor += 1.0
    assert torch.equal(tensor, torch.ones(shape))


@pytest.mark.parametrize("size_bytes", [1, 2 * MIB - 1, 5 * MIB + 3])
def test_huge_pages_hold_what_was_asked_for(size_bytes):
    block = huge_page_bytes(size_bytes)
    assert block.shape == (size_bytes,)
    assert not block.any()
    block.fill_(7)
    assert bool((block == 7).all())


@pytest.mark.parametrize("sizes", [(4096, 4096, 4000), (4096, 8192, 100)])
def test_ready_blocks_belong_to_one_taker_each(sizes):
    blocks = ReadyBlocks()
    taken = []
    for number, size_bytes in enumerate(sizes):
        block = blocks.take(size_bytes)
        assert block.shape == (size_bytes,)
        taken.append(block.fill_(number))
        for thread in threading.enumerate():
            if thread.name == "pages":
                thread.join()
    assert [int(block[-1]) for block in taken] == list(range(len(sizes)))


def test_pages_ahead_of_what_is_used_stand_ready():
    touched: list[tuple[int, int]] = []
    reached = threading.Condition()

    def touch(address: int, size_bytes: int) -> None:
        with reached:
            touched.append((address - whole.data_ptr(), size_bytes))
            reached.notify()

    def ready_bytes() -> int:
        return sum(size_bytes for _, size_bytes in touched)

    whole = torch.zeros(100 * MIB, dtype=torch.uint8)
    pages = PagesAhead(whole, 10 * MIB, touch)
    try:
        for used, wanted in ((0, 10), (5, 15), (5, 15), (3, 15), (50, 60), (95, 100), (100, 100)):
            pages.used(used * MIB)
            with reached:
                assert reached.wait_for(lambda wanted=wanted: ready_bytes() == wanted * MIB, timeout=60)
    finally:
        pages.close()
    # Each page once, from the beginning on.
    assert [first for first, _ in touched] == [sum(n for _, n in touched[:i]) for i in range(len(touched))]
    pages.close()


def test_touching_makes_pages_resident_and_changes_nothing():
    library = Library(library_path())
    process = psutil.Process()
    block = lazy_zeros((64 * MIB,), torch.uint8, CPU)
    block[MIB : 2 * MIB] = 7
    before = process.memory_info().rss
    library.touch(block.data_ptr(), block.nbytes)
    assert process.memory_info().rss - before > 60 * MIB
    assert bool((block[MIB : 2 * MIB] == 7).all())
    assert int(block.count_nonzero()) == MIB
