"""Budgets take no memory until they are used."""

from __future__ import annotations

import threading

import psutil
import pytest
import torch
from finetuned_service.engine.lazy_pages import ReadyBlocks, huge_page_bytes, lazy_zeros

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
