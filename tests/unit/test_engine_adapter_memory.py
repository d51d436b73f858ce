"""The plain path's memory for adapters: nothing of one that has left stays, nothing is copied twice, and what lacks is told."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.adapter_memory import AdapterMemory
from finetuned_service.engine.adapter_weights import tensors_of
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.messages import Residency, Sampling, SetResidency, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import ResourceExhausted
from own_layouts import save_parameters
from safetensors.torch import load_file
from tiny_models import TinyAdapter, random_prompt, save_tiny_base

BUDGET_BYTES = 1 << 20
META = torch.device("meta")
"""Stands for a device of its own: what is moved there is another tensor."""


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


@pytest.fixture
def memory(model: EngineModel) -> AdapterMemory:
    reader = AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)
    return AdapterMemory(reader, LoraBanks(model.sites, BUDGET_BYTES, model.dtype, META), BUDGET_BYTES)


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


def test_a_parameter_that_modules_share_is_copied_to_a_device_once(
    memory: AdapterMemory, whole: TinyAdapter
) -> None:
    weights = memory.read(whole.handle)
    place = memory.place(weights)
    memory.fill(place, weights)
    embedding, head = (
        next(tensors_of(op)) for module in ("model.embed_tokens", "lm_head") for op in place.ops[module]
    )
    assert embedding is head
    moved = {id(t): t for ops in place.ops.values() for op in ops for t in tensors_of(op)}
    assert {tensor.device for tensor in moved.values()} == {META}
    assert sum(tensor.nbytes for tensor in moved.values()) == place.ops_bytes


def test_a_device_without_memory_is_a_refusal_that_names_the_settings(
    memory: AdapterMemory, whole: TinyAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    weights = memory.read(whole.handle)
    place = memory.place(weights)
    with monkeypatch.context() as patch:
        patch.setattr(LoraBanks, "fill", full)
        with pytest.raises(ResourceExhausted, match=rf"adapter {whole.digest}: lower adapter_device_bytes"):
            memory.fill(place, weights)
    assert place.ops == {}
    memory.vacate(place)
    memory.fill(memory.place(weights), weights)
