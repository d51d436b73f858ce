"""LoRA over packed bases: gradients are those over the weights that the packed ones stand for, whatever ran before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.manifest import read_config
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.memory import memory_report
from finetuned_service.jobs.methods import BaseFacts, refuse_method, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.adapter import adapter_handle, read_adapter, write_adapter
from finetuned_service.training.model import AdaptedModel, load_model
from on_device import DEVICE
from packed_oracle import pack, unpacked, unpacked_model
from tiny_bases import make_tiny_base
from tiny_gpt2 import save_tiny_gpt2
from tiny_models import oracle_logits, random_prompt
from tiny_tokenizers import byte_level, write_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

ROWS = [EncodedRow(list(random_prompt(seed, 14)), [place > 3 for place in range(14)]) for seed in (1, 2, 3)]
SCALE = 1.0 / sum(row.supervised_tokens for row in ROWS)
RANK, ALPHA = 4, 8.0


BASES = {
    # Blocks of 64 weights go on from one row into the next.
    "narrow": {"dtype": torch.float32},
    # As wide as every kernel needs it: bitsandbytes repacks blocks of 32 by 64.
    "wide": {
        "dtype": torch.float32,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
    },
    "bf16": {"dtype": torch.bfloat16, "head_dim": 16, "attention_bias": True},
    "gpt2": {"n_embd": 48, "n_head": 4},
}


@pytest.fixture(scope="module", params=BASES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    if request.param == "gpt2":
        made = directory.with_name("source")
        save_tiny_gpt2(made, vocab_size=byte_level().get_vocab_size(), **BASES[request.param])
        import_directory(write_tokenizer(made, template=None), directory)
        return directory
    return make_tiny_base(directory, **BASES[request.param])


FORMATS = {"INT8": ("INT8", False), "INT8 with embeddings": ("INT8", True), "NF4": ("NF4", False)}


@pytest.fixture(params=FORMATS)
def packed(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    weight_format, embeddings = FORMATS[request.param]
    return pack(source, tmp_path / "packed", weight_format, embeddings=embeddings)


def test_whole_modules_of_a_packed_base_are_refused(packed: Path) -> None:
    """Of an adapter that is continued, too; over INT8 its scales would have counted twice."""
    settings = {"rank": RANK, "modules_to_save": ["lm_head"]}
    spec = TrainSpec.model_validate({"dataset": "", "adapter": "", "method": "QLORA", "lora": settings})
    facts = BaseFacts.of_directory(packed)
    (refused,) = refuse_method(resolve_method(spec, facts), facts)
    assert refused.violations[0].field == "spec.qlora.lora.modules_to_save"
    assert "modules of a quantized base cannot train whole" in refused.message


def adapted(packed: Path, **lora: Any) -> AdaptedModel:
    """With a B that is not zero, so that A has a gradient."""
    settings = {"rank": RANK, "alpha": ALPHA, **lora}
    spec = TrainSpec.model_validate({"dataset": "", "adapter": "", "method": "QLORA", "lora": settings})
    model = load_model(packed, resolve_method(spec, BaseFacts.of_directory(packed)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.copy_(0.1 * noise)
    return model


class PlainLora(nn.Module):
    """By the formula, over the weight that a packed one stands for."""

    def __init__(self, linear: nn.Linear, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + ALPHA / RANK * (x @ self.a.T) @ self.b.T


class PlainDora(nn.Module):
    """By the formula, the lengths of the adapted rows taken as constants."""

    def __init__(self, linear: nn.Module, a: nn.Parameter, b: nn.Parameter, magnitude: nn.Parameter) -> None:
        super().__init__()
        self.linear, self.a, self.b, self.magnitude = linear, a, b, magnitude

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear: Any = self.linear
        weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
        whole = weight + ALPHA / RANK * self.b @ self.a
        outputs = x @ whole.T * (self.magnitude / whole.detach().norm(dim=1))
        return outputs if linear.bias is None else outputs + linear.bias


def some_targets(base: Path) -> list[str]:
    """Of attention and of the feed-forward; the others stay packed and plain."""
    if read_config(base)["model_type"] == "gpt2":
        return ["attn.c_attn", "mlp.c_fc", "h.1.mlp.c_proj"]
    return ["q_proj", "v_proj", "up_proj", "down_proj"]


def reference(source: Path, packed: Path, model: AdaptedModel) -> tuple[Any, dict[str, nn.Parameter]]:
    """Plain transformers in float64 over the weights by hand, and its own A and B."""
    plain = unpacked_model(source, packed)
    parameters = {name: nn.Parameter(p.detach().double().cpu()) for name, p in model.named_parameters()}
    for name, module in list(plain.named_modules()):
        if f"{name}.lora_A.weight" in parameters:
            pair = [parameters[f"{name}.lora_{side}.weight"] for side in "AB"]
            magnitude = parameters.get(f"{name}.lora_magnitude_vector")
            plain.set_submodule(
                name, PlainLora(module, *pair) if magnitude is None else PlainDora(module, *pair, magnitude)
            )
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
        off = (parameter.grad.double().cpu() - expected[name]).norm() / expected[name].norm()
        assert off < tolerance, f"{name} is off by {off:.1%}"


def check_served(packed: Path, adapter: Path, plain: Any, *, exact: bool) -> None:
    """A reply and logits of the engine, in this process and over the same file."""
    handle, prompt = adapter_handle(adapter, packed), random_prompt(9, 20)
    with OfflineEngine(EngineModel.load(packed), EngineConfig("", kv_capacity_tokens=512)) as engine:
        (reply,) = engine.generate([Submit(1, prompt, handle, Sampling(8, ignore_eos=True))])
        served = engine.logits(prompt, handle)
    assert len(reply.token_ids) == 8
    if exact:
        torch.testing.assert_close(served, oracle_logits(plain, prompt), atol=2e-3, rtol=2e-3)


def test_gradients_are_those_over_dequantized_weights_also_after_evaluating_and_serving(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    model = adapted(packed, target_modules=some_targets(packed))
    plain, parameters = reference(source, packed, model)
    expected = expected_gradients(plain, parameters)
    exact = model.frozen_head.dtype is torch.float32
    tolerance = 1e-4 if exact else 0.06
    check_gradients(model, expected, tolerance)

    model.train(mode=False)
    with torch.no_grad():
        model.loss_of(ROWS, SCALE)
    check_gradients(model, expected, tolerance)

    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model.method, "bases/packed", model.frozen_head.dtype)
    check_served(packed, tmp_path / "adapter", plain, exact=exact)
    check_gradients(model, expected, tolerance)

    # What bitsandbytes' own module answers by rewriting its weight in place.
    model.decoder.eval()
    with torch.inference_mode():
        for module in model.decoder.modules():
            if isinstance(module, nn.Linear):
                module(torch.ones(1, module.in_features).to(model.frozen_head))
    check_gradients(model, expected, tolerance)

    # Continued over the packed base from what was stored: a base in 16 bits has rounded A and B.
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.zero_()
    read_adapter(tmp_path / "adapter", model)
    check_gradients(model, expected, tolerance)
    if DEVICE != "cpu":
        return  # what lies on a GPU is no longer mapped
    (mapping,) = [m for m in memory_report() if m.path == str(packed / "model.safetensors")]
    assert mapping.rss_bytes > 0
    assert mapping.copied_bytes == 0


def test_dora_over_a_packed_base_is_that_over_the_dequantized_rows(source: Path, packed: Path) -> None:
    model = adapted(packed, decomposed=True, target_modules=some_targets(packed)[:2])
    weights = unpacked(packed)
    exact = model.frozen_head.dtype is torch.float32
    for name, parameter in model.named_parameters():
        if name.endswith("lora_magnitude_vector"):
            lengths = weights[name.removesuffix(".lora_magnitude_vector")].norm(dim=1)
            tolerance = 1e-5 if exact else 1e-2
            torch.testing.assert_close(parameter.detach().double().cpu(), lengths, rtol=tolerance, atol=0)
            with torch.no_grad():
                parameter.mul_(1.2)
    expected = expected_gradients(*reference(source, packed, model))
    check_gradients(model, expected, 1e-4 if exact else 0.06)


@pytest.mark.parametrize("decomposed", [False, True])
def test_nothing_but_the_adapter_is_held_beside_the_packed_weights(packed: Path, *, decomposed: bool) -> None:
    """A dense copy of every weight between the two passes would cost what packing has won."""
    model = adapted(packed, decomposed=decomposed, target_modules=some_targets(packed)[:1])
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss_of(ROWS[:1], SCALE)
    shapes = [weight.shape for weight in unpacked(packed).values()]
    # Activations of the row look like that: it is filled up to 32 tokens.
    weights = {shape for out, width in shapes for shape in ((out, width), (width, out)) if 32 not in shape}
    head = tuple(model.head.shape)  # that of the base itself, or one copy beside a packed one
    assert not [
        tensor.shape
        for tensor in kept
        if tuple(tensor.shape) in weights - {head, head[::-1]} and tensor.is_floating_point()
    ]
