"""BaseGeometry: the linear modules of a base from its header, packed ones included."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.geometry import BaseGeometry, layers_of, linear_shapes
from finetuned_service.bases.manifest import BaseManifest, write_manifest
from finetuned_service.errors import Internal, NotFound
from finetuned_service.vocabulary import WeightFormat
from safetensors.torch import save_file
from tiny_adapters import TINY, tiny_llama

DIGEST, ROOT = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """What the model itself says: all Linear modules but the language model's head."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_are_those_of_the_model(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied, attention_bias=True)
    model.save_pretrained(tmp_path)
    assert shapes_of(model) == linear_shapes(tmp_path / "model.safetensors")


def test_packed_4_bit_weights_have_their_true_shape(tmp_path: Path) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: packed, "model.embed_tokens.weight": weight}
    tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert linear_shapes(tmp_path / "model.safetensors") == {"model.layers.0.mlp.up_proj": (48, 64)}


def write_base(directory: Path) -> None:
    tiny_llama().save_pretrained(directory)
    write_manifest(
        directory,
        BaseManifest(
            name="bases/tiny",
            digest=DIGEST,
            root_digest=ROOT,
            architecture="LlamaForCausalLM",
            weight_format=WeightFormat.FP32,
            parameters=1,
            weight_bytes=1,
            context_tokens=TINY["max_position_embeddings"],
            source="test",
            create_time=datetime(2025, 1, 1, tzinfo=UTC),
        ),
    )


def test_of_directory_tells_digests_and_shapes(tmp_path: Path) -> None:
    write_base(tmp_path)
    geometry = BaseGeometry.of_directory(tmp_path)
    model = tiny_llama()
    assert geometry == BaseGeometry(
        DIGEST,
        ROOT,
        shapes_of(model),
        sublayers={
            f"model.layers.{number}{part}": 32 for number in (0, 1) for part in ("", ".mlp", ".self_attn")
        },
        parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        layers=("model.layers.0", "model.layers.1"),
    )


def test_layers_are_in_their_order() -> None:
    modules = [f"transformer.layer.{number}.ffn.lin1" for number in range(12)]
    assert layers_of(sorted(modules)) == tuple(f"transformer.layer.{number}" for number in range(12))


def test_a_head_that_the_embedding_is_counts_as_a_parameter(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    geometry = BaseGeometry.of_files(tmp_path)
    assert geometry.parameters["lm_head.weight"] == geometry.parameters["model.embed_tokens.weight"]
    assert geometry.tied == {"model.embed_tokens.weight": ("lm_head",)}


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def broken_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"nonsense")


def broken_state(directory: Path) -> None:
    state: dict[str, Any] = {"blocksize": 64}
    name = "model.layers.0.up_proj.weight.quant_state.bitsandbytes__nf4"
    raw = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file({name: raw}, directory / "model.safetensors")


@pytest.mark.parametrize("spoil", [no_weights, broken_weights, broken_state])
def test_a_damaged_base_is_our_own_fault(tmp_path: Path, spoil: Any) -> None:
    write_base(tmp_path)
    spoil(tmp_path)
    with pytest.raises(Internal, match="the weights of base bases/tiny are damaged"):
        BaseGeometry.of_directory(tmp_path)


def test_a_directory_without_a_base_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        BaseGeometry.of_directory(tmp_path)
