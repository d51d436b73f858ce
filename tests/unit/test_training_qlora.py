"""LoRA over packed bases: gradients are those over the weights that the packed ones stand for, whatever ran before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.geometry import IN_BLOCK
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.load import dense_weight, load_base
from finetuned_service.bases.manifest import read_config
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import QuantizeSpec, TrainSpec
from finetuned_service.names import BaseName
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.quantization.store import store_quantized
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.adapter import adapter_handle, read_adapter, write_adapter
from finetuned_service.training.model import AdaptedModel, load_model
from finetuned_service.vocabulary import WeightFormat
from tiny_bases import make_tiny_base
from tiny_gpt2 import load_plain_gpt2, save_tiny_gpt2
from tiny_models import load_plain, oracle_logits, random_prompt
from tiny_tokenizers import byte_level, write_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

ROWS = [EncodedRow(list(random_prompt(seed, 14)), [place > 3 for place in range(14)]) for seed in (1, 2, 3)]
SCALE = 1.0 / sum(row.supervised_tokens for row in ROWS)
RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, None], ids=["fp32", "bf16", "gpt2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as every kernel needs it: bitsandbytes repacks blocks of 32 by 64."""
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    if request.param is None:
        made = directory.with_name("source")
        save_tiny_gpt2(made, vocab_size=byte_level().get_vocab_size(), n_embd=64, n_head=4)
        import_directory(write_tokenizer(made, template=None), directory)
        return directory
    shape = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
    return make_tiny_base(directory, dtype=request.param, **shape)


@pytest.fixture(params=["INT8", "NF4"])
def packed(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    directory, weight_format = tmp_path / "packed", WeightFormat(request.param)
    directory.mkdir()
    plan = plan_quantization(source, QuantizeSpec(output_base_id="packed", weight_format=weight_format))
    store_quantized(source, directory, plan, weight_format, BaseName("packed", "acme"), lambda: None)
    return directory


def adapted(packed: Path, **lora: Any) -> AdaptedModel:
    """With a B that is not zero, so that A has a gradient."""
    settings = {"rank": RANK, "alpha": ALPHA, **lora}
    spec = TrainSpec.model_validate({"dataset": "", "adapter": "", "method": "QLORA", "lora": settings})
    model = load_model(packed, resolve_method(spec, BaseFacts.of_directory(packed)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


class PlainLora(nn.Module):
    """By the formula, over the weight that a packed one stands for."""

    def __init__(self, linear: nn.Linear, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + ALPHA / RANK * (x @ self.a.T) @ self.b.T


def some_targets(base: Path) -> list[str]:
    """Of attention and of the feed-forward; the others stay packed and plain."""
    if read_config(base)["model_type"] == "gpt2":
        return ["attn.c_attn", "mlp.c_fc", "h.1.mlp.c_proj"]
    return ["q_proj", "v_proj", "up_proj", "down_proj"]


def reference(source: Path, packed: Path, model: AdaptedModel) -> tuple[Any, dict[str, nn.Parameter]]:
    """Plain transformers in float64 over the dequantized weights, and its own A and B."""
    gpt = read_config(source)["model_type"] == "gpt2"
    plain = load_plain_gpt2(source).double() if gpt else load_plain(source, torch.float64)
    stored = load_base(packed)
    parameters = {name: nn.Parameter(p.detach().double()) for name, p in model.named_parameters()}
    for name, module in list(plain.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and IN_BLOCK.fullmatch(name):
            dense = dense_weight(stored.get_submodule(name))
            with torch.no_grad():
                module.weight.copy_(dense.T if gpt else dense)
            if f"{name}.lora_A.weight" in parameters:
                pair = (parameters[f"{name}.lora_{side}.weight"] for side in "AB")
                parent, _, last = name.rpartition(".")
                setattr(plain.get_submodule(parent), last, PlainLora(module, *pair))
    return plain, parameters


def expected_gradients(plain: Any, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    losses = []
    for row in ROWS:
        logits = plain(input_ids=torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
        losses += [-logits[place - 1, row.token_ids[place]] for place in range(4, 14)]
    torch.stack(losses).mean().backward()
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def check_gradients(model: AdaptedModel, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the expected one's length; the trap loses most of it without an error."""
    for _, parameter in model.named_parameters():
        parameter.grad = None
    model.train(mode=True)
    model.loss_of(ROWS, SCALE).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        off = (parameter.grad.double() - expected[name]).norm() / expected[name].norm()
        assert off < tolerance, f"{name} is off by {off:.1%}"


def test_gradients_are_those_over_dequantized_weights_also_after_evaluating_and_serving(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    model = adapted(packed, target_modules=some_targets(packed))
    plain, parameters = reference(source, packed, model)
    expected = expected_gradients(plain, parameters)
    tolerance = 1e-4 if model.frozen_head.dtype is torch.float32 else 0.06
    check_gradients(model, expected, tolerance)

    model.train(mode=False)
    with torch.no_grad():
        model.loss_of(ROWS, SCALE)
    check_gradients(model, expected, tolerance)

    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model.method, "bases/packed", model.frozen_head.dtype)
    handle, prompt = adapter_handle(tmp_path / "adapter", packed), random_prompt(9, 20)
    with OfflineEngine(EngineModel.load(packed), EngineConfig("", kv_capacity_tokens=512)) as engine:
        (reply,) = engine.generate([Submit(1, prompt, handle, Sampling(8, ignore_eos=True))])
        served = engine.logits(prompt, handle)
    assert len(reply.token_ids) == 8
    if model.frozen_head.dtype is torch.float32:
        torch.testing.assert_close(served, oracle_logits(plain, prompt), atol=2e-3, rtol=2e-3)
    check_gradients(model, expected, tolerance)

    # Continued over the packed base from what was stored: a base in 16 bits has rounded A and B.
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.zero_()
    read_adapter(tmp_path / "adapter", model)
    check_gradients(model, expected, tolerance)


def test_dora_over_a_packed_base_has_the_lengths_of_the_dequantized_rows(packed: Path) -> None:
    model = adapted(packed, decomposed=True, target_modules=some_targets(packed)[:1])
    stored = load_base(packed)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_magnitude_vector"):
            weight = dense_weight(stored.get_submodule(name.removesuffix(".lora_magnitude_vector")))
            assert torch.allclose(parameter.detach(), weight.float().norm(dim=1))
    model.train(mode=True)
    model.loss_of(ROWS, SCALE).backward()
    assert all(parameter.grad is not None for _, parameter in model.named_parameters())


def test_nothing_but_the_adapter_is_held_beside_the_packed_weights(packed: Path) -> None:
    """A dense copy of every weight between the two passes would cost what packing has won."""
    model = adapted(packed, target_modules=some_targets(packed)[:1])
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss_of(ROWS[:1], SCALE)
    weights = {(128, 64), (64, 128), (64, 64), (192, 64), (256, 64), (64, 256)}
    assert not [
        tensor.shape for tensor in kept if tuple(tensor.shape) in weights and tensor.is_floating_point()
    ]
