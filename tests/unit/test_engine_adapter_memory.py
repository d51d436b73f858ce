"""The plain path's memory for adapters: nothing of one that has left stays."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from finetuned_service.engine.adapter_weights import tensors_of
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Residency, Sampling, SetResidency, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from own_layouts import save_parameters
from safetensors.torch import load_file
from tiny_models import TinyAdapter, random_prompt, save_tiny_base

BUDGET_BYTES = 1 << 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16, tied=True)


@pytest.fixture(scope="module")
def model(base: Path) -> EngineModel:
    return EngineModel.load(base)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyAdapter:
    """All parameters, the embedding being the head too."""
    names = list(load_file(base / "model.safetensors"))
    tied = {"model.embed_tokens.weight": ["lm_head"]}
    return save_parameters(
        tmp_path_factory.mktemp("whole") / "adapter", base, names, method="FULL", seed=1, tied=tied
    )


def test_nothing_of_an_adapter_that_was_unloaded_stays_in_memory(
    model: EngineModel, whole: TinyAdapter
) -> None:
    config = EngineConfig(
        base_directory="",
        max_running_sequences=1,
        max_prefill_tokens=64,
        kv_capacity_tokens=256,
        device_budget_bytes=BUDGET_BYTES,
        host_budget_bytes=BUDGET_BYTES,
    )
    with OfflineEngine(model, config) as engine:
        (completion,) = engine.generate(
            [Submit(1, random_prompt(1, 9), whole.handle, Sampling(4, ignore_eos=True))]
        )
        assert completion.error is None
        place = engine._loop.residency._entries[whole.digest].place
        assert place is not None
        tensors = [weakref.ref(t) for ops in place.ops.values() for op in ops for t in tensors_of(op)]
        del place
        engine.deliver(SetResidency(7, whole.handle, Residency.STORED))
        engine.step()
        gc.collect()
        assert tensors
        assert [tensor() for tensor in tensors if tensor() is not None] == []
