"""Budgets take no memory until they are used."""

from __future__ import annotations

import psutil
import pytest
import torch
from finetuned_service.engine.lazy_pages import lazy_zeros

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
