"""Bases of every format load back to what was stored, and 4-bit weights stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from finetuned_service.bases.int8 import Int8Embedding, Int8Linear, dequantize_rows
from finetuned_service.bases.load import load_base, stored_tensors
from finetuned_service.bases.manifest import canonical_config, read_config, read_manifest
from finetuned_service.bases.nf4 import Nf4Linear
from finetuned_service.digests import read_safetensors_header, tensors_digest
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.names import BaseName
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.quantization.store import store_quantized
from finetuned_service.vocabulary import WeightFormat
from safetensors.torch import load_file
from tiny_bases import make_tiny_base
from tiny_models import load_plain, random_prompt
from torch import nn
from transformers import AutoModelForCausalLM

TOKEN_IDS = torch.tensor([random_prompt(5, 40)])


def quantize(source: Path, target: Path, weight_format: str, *, embeddings: bool = False) -> Path:
    spec = QuantizeSpec(
        output_base_id="small", weight_format=WeightFormat(weight_format), quantize_embeddings=embeddings
    )
    target.mkdir(parents=True)
    plan = plan_quantization(source, spec)
    store_quantized(source, target, plan, spec.weight_format, BaseName("small", "acme"), lambda: None)
    return target


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def tied(request, tmp_path_factory) -> Path:
    """As wide as every kernel needs it: bitsandbytes packs blocks of 32 by 64."""
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    return make_tiny_base(
        directory,
        dtype=request.param,
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=128,
    )


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(TOKEN_IDS).logits


def dequantized_copy(source: Path, quantized: Path):
    """The source with each INT8 weight replaced by what it stands for: the oracle."""
    model = load_plain(source, torch.float32)
    stored = load_file(quantized / "model.safetensors")
    with torch.no_grad():
        for name, tensor in stored.items():
            if tensor.dtype == torch.int8:
                model.get_parameter(name).copy_(dequantize_rows(tensor, stored[f"{name}_scale"]))
    return model


@pytest.mark.parametrize("embeddings", [False, True])
def test_an_int8_base_computes_with_the_stored_weights(tied, tmp_path, embeddings):
    quantized = quantize(tied, tmp_path / "small", "INT8", embeddings=embeddings)
    model = load_base(quantized, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(dequantized_copy(tied, quantized)), rtol=1e-3, atol=1e-3)


def test_every_module_of_an_int8_base_is_the_expected_one(tied, tmp_path):
    model = load_base(quantize(tied, tmp_path / "small", "INT8"))
    decoder = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in name]
    assert {type(module) for module in decoder} == {Int8Linear}
    assert len(decoder) == 14
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding


def test_tied_int8_embeddings_are_stored_once_and_stay_tied(tied, tmp_path):
    quantized = quantize(tied, tmp_path / "small", "INT8", embeddings=True)
    model = load_base(quantized)
    assert type(model.model.embed_tokens) is Int8Embedding
    assert type(model.lm_head) is Int8Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight_scale is model.model.embed_tokens.weight_scale
    assert [name for name in load_file(quantized / "model.safetensors") if "lm_head" in name] == []


def test_untied_output_layers_follow_the_embeddings(tmp_path):
    source = make_tiny_base(tmp_path / "tiny", tied=False)
    kept = load_file(quantize(source, tmp_path / "a", "INT8") / "model.safetensors")
    both = load_file(quantize(source, tmp_path / "b", "INT8", embeddings=True) / "model.safetensors")
    assert kept["lm_head.weight"].dtype == kept["model.embed_tokens.weight"].dtype == torch.float32
    assert both["lm_head.weight"].dtype == both["model.embed_tokens.weight"].dtype == torch.int8
    model = load_base(tmp_path / "b")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    torch.testing.assert_close(
        logits(model), logits(dequantized_copy(source, tmp_path / "b")), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_are_kept_as_they_are(tmp_path, bias):
    source = make_tiny_base(tmp_path / "tiny", **{bias: True})
    before = load_file(source / "model.safetensors")
    quantized = quantize(source, tmp_path / "small", "INT8")
    after = load_file(quantized / "model.safetensors")
    biases = [name for name in before if name.endswith("bias")]
    assert biases
    assert all(torch.equal(before[name], after[name]) for name in biases)
    torch.testing.assert_close(
        logits(load_base(quantized)), logits(dequantized_copy(source, quantized)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("weight_format", "embeddings"), [("INT8", False), ("INT8", True), ("NF4", False)])
def test_plain_transformers_loads_the_same_model(tied, tmp_path, weight_format, embeddings):
    quantized = quantize(tied, tmp_path / "small", weight_format, embeddings=embeddings)
    plain, info = AutoModelForCausalLM.from_pretrained(quantized, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    # In training mode, where bitsandbytes leaves its weights as they are.
    assert torch.equal(logits(plain.train()), logits(load_base(quantized)))


@pytest.mark.parametrize("weight_format", ["INT8", "NF4"])
def test_loading_again_gives_identical_logits(tied, tmp_path, weight_format):
    quantized = quantize(tied, tmp_path / "small", weight_format)
    assert torch.equal(logits(load_base(quantized)), logits(load_base(quantized)))


def test_an_nf4_base_equals_quantizing_while_loading(tied, tmp_path):
    """transformers with a BitsAndBytesConfig, from the unquantized source: the oracle."""
    from transformers import BitsAndBytesConfig

    dtype = load_plain(tied).dtype
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )
    oracle = AutoModelForCausalLM.from_pretrained(tied, quantization_config=config, dtype=dtype).train()
    stored = load_base(quantize(tied, tmp_path / "small", "NF4"))
    assert torch.equal(logits(oracle), logits(stored))


def test_eval_forwards_leave_4bit_weights_as_stored_and_gradients_whole(tied, tmp_path):
    """bitsandbytes repacks them in place on some CPUs; training through repacked ones loses the gradient."""
    quantized = quantize(tied, tmp_path / "small", "NF4")
    stored = load_file(quantized / "model.safetensors")
    model = load_base(quantized)

    def gradient() -> torch.Tensor:
        model.train()
        inputs = model.get_input_embeddings()(TOKEN_IDS).detach().requires_grad_()
        model(inputs_embeds=inputs).logits.float().square().mean().backward()
        model.eval()
        return inputs.grad

    before = gradient()
    logits(model)
    assert not any(isinstance(module, Linear4bit) for module in model.modules())
    for name, module in model.named_modules():
        if "proj" in name:
            assert type(module) is Nf4Linear
            assert torch.equal(module.weight.data, stored[f"{name}.weight"]), name
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("weight_format", ["", "INT8", "NF4"])
def test_the_digest_of_what_is_in_memory_is_the_bases_own(tied, tmp_path, weight_format):
    base = quantize(tied, tmp_path / "small", weight_format) if weight_format else tied
    model = load_base(base)
    readers = stored_tensors(model, base)
    logits(model)
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj)  # as sites do
    tensors = {name: read() for name, read in readers.items()}
    header = read_safetensors_header(base / "model.safetensors")
    entries = [
        (
            i.name,
            i.dtype,
            i.shape,
            tensors[i.name].detach().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for i in header
    ]
    digest = tensors_digest(entries, canonical_config(read_config(base)))
    assert digest == read_manifest(base).digest


def test_unquantized_bases_load_as_transformers_loads_them(tied):
    assert torch.equal(logits(load_base(tied)), logits(AutoModelForCausalLM.from_pretrained(tied)))


def test_the_manifest_of_a_derived_base_tells_its_origin(tied, tmp_path):
    source = read_manifest(tied)
    derived = read_manifest(quantize(tied, tmp_path / "small", "NF4"))
    assert (derived.name, derived.source, derived.root_digest, derived.parameters) == (
        "tenants/acme/bases/small",
        "bases/tiny",
        source.digest,
        source.parameters,
    )
    assert derived.weight_format is WeightFormat.NF4
    assert derived.digest != source.digest
    assert derived.weight_bytes < source.weight_bytes
    assert "NF4" in derived.recipe
