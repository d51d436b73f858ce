"""AdapterOpener: what it gives is what is stored, and files that changed are refused however far they were read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuned_service.adapters import opened as opened_module
from finetuned_service.adapters.files import CONFIG_FILE, WEIGHTS_FILE, BaseGeometry, check_adapter
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.adapters.opened import AdapterOpener
from finetuned_service.adapters.site_ops import AddLowRank
from finetuned_service.errors import InvalidAdapterFiles
from safetensors.torch import load_file, save_file
from tiny_adapters import peft_model, save_adapter, tiny_llama

Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> BaseGeometry:
    directory = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(directory)
    return BaseGeometry("sha256:base", "sha256:root", linear_shapes(directory / "model.safetensors"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(peft_model(), tmp_path / "adapter")


def other_numbers(source: Path, target: Path) -> Path:
    """The same names and shapes in the same order, and so the same header."""
    shutil.copytree(source, target)
    tensors = load_file(source / WEIGHTS_FILE)
    moved = {name: tensor + 1.0 for name, tensor in tensors.items()}
    save_file(moved, target / WEIGHTS_FILE, metadata={"format": "pt"})  # as PEFT does
    return target


def test_adapters_that_are_alike_are_understood_once_and_each_has_its_own_numbers(
    adapter: Path, geometry: BaseGeometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    parse = opened_module.parse_layout
    monkeypatch.setattr(opened_module, "parse_layout", lambda raw: asked.append(raw) or parse(raw))
    opener = AdapterOpener(geometry)
    for directory in (adapter, other_numbers(adapter, tmp_path / "other")):
        with opener.open(directory, check_adapter(directory, geometry, 64).digest) as opened:
            assert len(opened.modules) == 14
            (update,) = opened.ops(Q)
            assert isinstance(update, AddLowRank)
            stored = load_file(directory / WEIGHTS_FILE)[Q_A]
            found = np.frombuffer(update.a.data, dtype=np.float32).copy()
        np.testing.assert_array_equal(found, stored.numpy().ravel())
    assert len(asked) == 1
    config = adapter / CONFIG_FILE
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    with opener.open(adapter, check_adapter(adapter, geometry, 64).digest):
        assert len(asked) == 2


def test_files_that_changed_are_refused_at_the_end_whatever_the_block_made_of_them(
    adapter: Path, geometry: BaseGeometry
) -> None:
    digest = check_adapter(adapter, geometry, 64).digest
    opener = AdapterOpener(geometry)
    with opener.open(adapter, digest):
        pass
    tensors = load_file(adapter / WEIGHTS_FILE)
    tensors[Q_A][0, 0] = torch.nan
    save_file(tensors, adapter / WEIGHTS_FILE)
    reached: list[str] = []

    def packed() -> None:
        with opener.open(adapter, digest) as opened:
            reached.extend(opened.modules)
            raise ValueError("not finite")

    with pytest.raises(InvalidAdapterFiles, match="import it again") as refused:
        packed()
    assert len(reached) == 14
    assert refused.value.metadata == {"adapter_digest": digest}


def test_an_adapter_of_another_base_is_refused_before_the_block(
    adapter: Path, geometry: BaseGeometry
) -> None:
    narrow = BaseGeometry("", "", dict.fromkeys(geometry.linear_shapes, (8, 8)))
    digest = check_adapter(adapter, geometry, 64).digest
    with (
        pytest.raises(InvalidAdapterFiles, match="has shape"),
        AdapterOpener(narrow).open(adapter, digest),
    ):
        raise AssertionError("the block ran")
