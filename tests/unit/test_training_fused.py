"""The compiled passes beside float64, and whole fused layers: their gradients are no further from float64 than
those of transformers' own operators in bfloat16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetuned_service.engine.native.build import PORTABLE, library_path
from finetuned_service.jobs.specs import LoraSettings, Optimization, TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training import attention
from finetuned_service.training.activations import kept_bytes
from finetuned_service.training.fused import FusedLayer
from finetuned_service.training.loss import supervised_cross_entropy
from finetuned_service.training.methods.lora import LoraLinear
from finetuned_service.training.model import AdaptedModel, adapt, load_model
from finetuned_service.training.native.kernels import FLAGS, SOURCE, Kernels
from finetuned_service.training.order import micro_batches
from finetuned_service.training.packing import RowLayout, pack
from reference_loops import our_curve
from tiny_models import ALL_PROJECTIONS, VOCABULARY
from torch import Tensor
from torch.nn import functional
from training_tasks import make_base, make_task
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

BF16_STEP = 2.0**-8
"""The most that rounding to bfloat16 changes, relative to what is rounded."""


@pytest.fixture(scope="session", params=["native", "portable"])
def kernels(request, tmp_path_factory) -> Kernels:
    flags = (*FLAGS, PORTABLE) if request.param == "portable" else FLAGS
    found = Kernels(library_path(str(tmp_path_factory.mktemp("compiled")), source=SOURCE, extra_flags=flags))
    if request.param == "portable":
        assert not found.uses_avx512_bf16
    return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def exact(tensor: Tensor) -> Tensor:
    return tensor.double().requires_grad_()


def assert_near(found: Tensor, expected: Tensor, steps: float = 1.0) -> None:
    """Within so many roundings of the largest element."""
    difference = (found.double() - expected.double()).abs().max()
    assert difference <= steps * BF16_STEP * expected.abs().max()


def test_norm_forward_and_backward(kernels):
    x, weight, grad, past = random(7, 48), random(48), random(7, 48), random(7, 48)
    reference = exact(x)
    expected = functional.rms_norm(reference, (48,), weight.double(), 1e-3)
    expected.backward(grad.double())
    out, scales = kernels.rms_forward(x, weight, 1e-3)
    assert_near(out, expected)
    assert_near(kernels.rms_backward(grad, x, weight, scales, past), reference.grad + past.double())


def test_rotation_is_transformers_and_turns_back(kernels):
    x, angles = random(5, 3, 16), torch.randn(5, 8)
    cosines, sines = (torch.cat([part, part], -1).bfloat16() for part in (angles.cos(), angles.sin()))
    expected, _ = apply_rotary_pos_emb(
        x.double(), x.double(), cosines.double(), sines.double(), unsqueeze_dim=1
    )
    turned = x.clone()
    kernels.rotate_(turned, cosines, sines)
    assert_near(turned, expected)
    # Cosines and sines are rounded, so that turning back also scales by their squares' sum, nearly 1.
    kernels.rotate_(turned, cosines, sines, back=True)
    assert_near(turned, x, steps=3)


def test_gate_and_up(kernels):
    gate, up, grad = random(5, 32), random(5, 32), random(5, 32)
    gates, ups = exact(gate), exact(up)
    expected = functional.silu(gates) * ups
    expected.backward(grad.double())
    assert_near(kernels.swiglu_forward(gate, up), expected)
    for found, wanted in zip(
        kernels.swiglu_backward(gate, up, grad), (expected, gates.grad, ups.grad), strict=True
    ):
        assert_near(found, wanted)


@pytest.mark.parametrize("vocabulary", [16, 97])
def test_cross_entropy_and_its_gradient(kernels, vocabulary):
    logits, targets = (4 * torch.randn(6, vocabulary)).bfloat16(), torch.randint(vocabulary, (6,))
    reference = exact(logits)
    expected = functional.cross_entropy(reference, targets, reduction="none") * 0.25
    expected.sum().backward()
    losses = kernels.cross_entropy_(logits, targets, 0.25)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    assert_near(logits, reference.grad)


@pytest.mark.parametrize("chunk_elements", [1, 97 * 32, 10**6])
def test_loss_in_chunks(kernels, monkeypatch, chunk_elements):
    monkeypatch.setattr("finetuned_service.training.loss.MAX_CHUNK_ELEMENTS", chunk_elements)
    hidden, head, targets = random(70, 48).requires_grad_(), random(97, 48), torch.randint(97, (70,))
    reference = exact(hidden.detach())
    loss = supervised_cross_entropy(hidden, head, targets, 0.5, kernels)
    expected = functional.cross_entropy(reference @ head.double().T, targets, reduction="sum") * 0.5
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=5e-3, atol=0)
    assert_near(hidden.grad, reference.grad, steps=4)


@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(16, 4, 2), (48, 2, 1), (64, 3, 3)])
def test_attention_stays_within_each_row(kernels, dim, heads, kv_heads):
    lengths = (5, 40, 1, 77, 24, 25, 32)
    used, tokens = sum(lengths), sum(lengths) + 4
    layout = RowLayout.of(lengths, tokens)
    q, k, v = random(tokens, heads, dim), random(tokens, kv_heads, dim), random(tokens, kv_heads, dim)
    grad = random(tokens, heads, dim)
    out, sums = kernels.attention_forward(q, k, v, layout, 0.2)
    found = kernels.attention_backward(q, k, v, out, sums, grad, layout, 0.2)
    references = [exact(tensor) for tensor in (q, k, v)]
    expected = []
    for start, length in zip(layout.starts.tolist(), lengths, strict=True):
        rows = [tensor[start : start + length].transpose(0, 1)[None] for tensor in references]
        row = functional.scaled_dot_product_attention(*rows, is_causal=True, scale=0.2, enable_gqa=True)
        expected.append(row[0].transpose(0, 1))
    torch.cat(expected).backward(grad[:used].double())
    assert_near(out[:used], torch.cat(expected))
    for tensor, reference in zip(found, references, strict=True):
        assert_near(tensor[:used], reference.grad[:used], steps=2)
        assert not tensor[used:].any()
    assert not out[used:].any()


def test_results_do_not_depend_on_the_number_of_threads(kernels):
    lengths = (100, 300, 37)
    layout = RowLayout.of(lengths, sum(lengths))
    q, grad = random(sum(lengths), 4, 64), random(sum(lengths), 4, 64)
    k, v = random(sum(lengths), 2, 64), random(sum(lengths), 2, 64)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        out, sums = kernels.attention_forward(q, k, v, layout, 0.2)
        slopes = kernels.attention_backward(q, k, v, out, sums, grad, layout, 0.2)
        normed, _ = kernels.rms_forward(q.flatten(1), random(256).fill_(2), 1e-5)
        found.append((out, *slopes, normed, kernels.swiglu_forward(q.flatten(1), grad.flatten(1))))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
}


def spec(lora: LoraSettings, seed: int = 0) -> TrainSpec:
    return TrainSpec(dataset="", adapter="", lora=lora, optimization=Optimization(seed=seed))


def make(
    family: str,
    kernels: Kernels | None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    targets: tuple[str, ...] = ALL_PROJECTIONS,
    dropout: float = 0.0,
) -> AdaptedModel:
    """The same weights whatever the dtype: those that bfloat16 holds."""
    model_class, config = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config).to(torch.bfloat16).to(dtype)
    attention.register()
    model.set_attn_implementation(attention.IMPLEMENTATION)
    lora = LoraSettings(rank=4, alpha=6.0, target_modules=targets, dropout=dropout)
    adapted = adapt(model, spec(lora, seed=3), kernels)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in adapted.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(0.2).bfloat16())
    return adapted


def rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(5)
    return [
        EncodedRow(
            torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(),
            [place >= length // 2 and place > 0 for place in range(length)],
        )
        for length in (9, 3, 42, 7, 2, 25)
    ]


def gradients(model: AdaptedModel) -> list[Tensor]:
    examples = rows()
    model.loss(pack(examples), 1.0 / sum(row.supervised_tokens for row in examples)).backward()
    return [parameter.grad for _, parameter in model.named_parameters() if parameter.grad is not None]


def fused_layers(model: AdaptedModel) -> list[FusedLayer]:
    return [module for module in model.decoder.modules() if isinstance(module, FusedLayer)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = list(zip(found, expected, strict=True))
    off = sum((a.double() - b).square().sum() for a, b in pairs)
    return float((off / sum(b.double().square().sum() for _, b in pairs)).sqrt())


@pytest.mark.parametrize("targets", [ALL_PROJECTIONS, ("k_proj", "o_proj", "up_proj")])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_as_near_to_float64_as_torchs_own(kernels, family, targets):
    fused = make(family, kernels, targets=targets)
    assert len(fused_layers(fused)) == 2
    expected = gradients(make(family, None, torch.float64, targets=targets))
    plain = gradients(make(family, None, targets=targets))
    assert error(gradients(fused), expected) <= 1.1 * error(plain, expected) < 0.05


def test_checkpointing_gives_the_same_bits(kernels):
    whole, again = make("llama", kernels), make("llama", kernels)
    again.checkpoint_activations()
    assert all(layer.checkpointing for layer in fused_layers(again))
    assert all(torch.equal(a, b) for a, b in zip(gradients(whole), gradients(again), strict=True))


def test_rows_are_the_same_bits_alone_and_in_company(kernels):
    model = make("llama", kernels)
    hidden = [
        model.decoder(
            input_ids=packed.token_ids,
            position_ids=packed.position_ids,
            use_cache=False,
            layout=packed.layout,
        ).last_hidden_state[0]
        for packed in (pack(rows()[2:3]), pack(rows()[2:4]))
    ]
    assert torch.equal(hidden[0][:42], hidden[1][:42])


def test_dropout_goes_through_the_plain_layer(kernels):
    fused, plain = make("llama", kernels, dropout=0.5), make("llama", None, dropout=0.5)
    found = []
    for model in (fused, plain):
        model.train(mode=True)
        torch.manual_seed(9)
        found.append(gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) or error(*found) < 0.02
    fused.train(mode=False)
    assert error(gradients(fused), found[1]) > 0.1


@pytest.mark.parametrize(
    ("model_class", "config", "dtype"),
    [
        (LlamaForCausalLM, LlamaConfig(**SIZES), torch.float32),
        (LlamaForCausalLM, LlamaConfig(**{**SIZES, "head_dim": 8}), torch.bfloat16),
        (LlamaForCausalLM, LlamaConfig(**SIZES, hidden_act="gelu"), torch.bfloat16),
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8), torch.bfloat16),
        (Qwen3ForCausalLM, Qwen3Config(**SIZES), torch.bfloat16),
    ],
    ids=["float32", "head-of-8", "gelu", "window", "qwen3"],
)
def test_what_computes_otherwise_is_left_alone(kernels, model_class, config, dtype):
    model = model_class(config).to(dtype)
    attention.register()
    model.set_attn_implementation(attention.IMPLEMENTATION)
    adapted = adapt(model, spec(LoraSettings(rank=2, alpha=4.0, target_modules=("q_proj",))), kernels)
    assert not fused_layers(adapted)


@pytest.mark.parametrize("placement", ["HOULSBY", "PFEIFFER", "PARALLEL"])
@pytest.mark.parametrize("target", ["self_attn", "mlp", ""])
def test_a_layer_with_a_bottleneck_is_left_alone(kernels, placement, target, tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, head_dim=16)
    targets = {"target_modules": [target]} if target else {}
    wanted = {"method": "BOTTLENECK", "bottleneck": {"placement": placement, "width": 4, **targets}}
    model = load_model(base, make_task(tmp_path / "task", base, **wanted).spec)
    assert not fused_layers(model)
    lines = our_curve(model)
    assert lines[-1] < lines[0]


def test_micro_batches_hold_every_row_once_within_both_limits():
    made = [
        EncodedRow([1] * length, [False] + [True] * (length - 1)) for length in (5, 90, 20, 40, 7, 300, 2)
    ]
    parts = micro_batches(made, most_rows=3, most_tokens=100)
    assert sorted(len(row.token_ids) for part in parts for row in part) == [2, 5, 7, 20, 40, 90, 300]
    for part in parts:
        assert len(part) == 1 or (len(part) <= 3 and sum(len(row.token_ids) for row in part) <= 100)
    assert parts == micro_batches(made[::-1], most_rows=3, most_tokens=100)


def test_micro_batches_are_of_like_size():
    made = [EncodedRow([1] * 10, [True] * 10) for _ in range(11)]
    assert [len(part) for part in micro_batches(made, most_rows=100, most_tokens=100)] == [6, 5]
    assert [len(part) for part in micro_batches(made, most_rows=100, most_tokens=110)] == [11]


def test_fused_layers_keep_about_what_they_are_expected_to(kernels):
    model, tokens = make("llama", kernels), 512
    generator = torch.Generator().manual_seed(5)
    packed = pack(
        [EncodedRow(torch.randint(3, 97, (64,), generator=generator).tolist(), [False, *[True] * 63])] * 8
    )
    kept: dict[int, int] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        model.loss(packed, 1.0)
    assert 0.5 * model.kept_bytes(tokens) < sum(kept.values()) < 2 * model.kept_bytes(tokens)


def test_a_module_that_lora_stands_around_is_counted_once():
    plain = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(8, 16))])
    adapted = torch.nn.ModuleList(
        [torch.nn.Sequential(LoraLinear(torch.nn.Linear(8, 16), rank=2, scaling=1.0))]
    )
    assert kept_bytes(adapted, 100) == kept_bytes(plain, 100) > 0
