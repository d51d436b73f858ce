"""What an adapter is told to take in memory before it is read is what it takes then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuned_service.adapters.files import WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.memory import host_bytes
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.model import EngineModel
from finetuned_service.errors import InvalidAdapterFiles, Unavailable
from own_layouts import save_parameters
from safetensors.torch import load_file, save_file
from tiny_models import TinyAdapter, save_tiny_adapter, save_tiny_base


def stored_as(dtype: torch.dtype, adapter: TinyAdapter, model: EngineModel) -> AdapterHandle:
    path = adapter.directory / WEIGHTS_FILE
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    return AdapterHandle(check_adapter(adapter.directory, model.geometry, 256).digest, str(adapter.directory))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("served", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["LORA", "LAYERS"])
def test_what_is_reserved_is_what_it_takes(
    tmp_path: Path, stored: torch.dtype, served: torch.dtype, method: str
) -> None:
    base = save_tiny_base(tmp_path / "base", dtype=served)
    model = EngineModel.load(base)
    if method == "LORA":
        adapter = save_tiny_adapter(tmp_path / "adapter", base, seed=1, rank=4)
    else:
        name = "model.layers.0.mlp.up_proj.weight"
        adapter = save_parameters(tmp_path / "adapter", base, [name], method=method, seed=1)
    reader = AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)
    handle = stored_as(stored, adapter, model)
    elements = sum(tensor.numel() for tensor in load_file(adapter.directory / WEIGHTS_FILE).values())
    expected = host_bytes(elements, served.itemsize, encodes=False)
    assert reader.size_bytes(handle) == reader.read(handle).size_bytes == expected


def test_heads_over_what_encodes_are_float32() -> None:
    assert [host_bytes(10, size, encodes=True) for size in (2, 4)] == [40, 40]


def test_files_without_a_header_are_refused_before_memory_is_reserved(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    model = EngineModel.load(base)
    reader = AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)
    handle = save_tiny_adapter(tmp_path / "adapter", base, seed=1).handle
    path = Path(handle.directory) / WEIGHTS_FILE
    path.write_bytes(b"short")
    with pytest.raises(InvalidAdapterFiles, match="5 bytes"):
        reader.size_bytes(handle)
    path.unlink()
    with pytest.raises(Unavailable, match="cannot be read now"):
        reader.size_bytes(handle)
