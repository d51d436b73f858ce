"""Loss and gradients of the adapted base on packed rows, beside PEFT on plain transformers, row by row."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from finetuned_service.jobs.memory import memory_report
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training import attention
from finetuned_service.training.model import AdaptedModel, adapt, load_model
from finetuned_service.training.order import micro_batches
from finetuned_service.training.packing import pack
from on_device import DEVICE
from peft import LoraConfig, get_peft_model
from tiny_models import ALL_PROJECTIONS, VOCABULARY, save_tiny_base
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=4)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**SIZES, no_rope_layer_interval=2)),
}


def spec(seed: int = 0, **method: Any) -> TrainSpec:
    """A spec of which only the method and the seed matter here."""
    return TrainSpec.model_validate({"dataset": "", "adapter": "", "optimization": {"seed": seed}, **method})


LORA = {"lora": {"rank": 4, "alpha": 6.0, "target_modules": ALL_PROJECTIONS}}


# transformers' norms and softmax compute in float32 whatever the model's dtype.
TOLERANCE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6}


def rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for length in (9, 3, 12, 7, 2, 5):
        token_ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(EncodedRow(token_ids, [place >= length // 2 and place > 0 for place in range(length)]))
    return made


def twin_of(peft: Any, name: str) -> torch.nn.Parameter:
    """PEFT's parameter for one of ours."""
    module, part = re.fullmatch(r"(.+?)\.((?:lora_|ia3_).+)", name).groups()
    owner, kind = peft.base_model.model.get_submodule(module), part.removesuffix(".weight")
    held = getattr(owner, kind)["default"]
    return held if isinstance(held, torch.nn.Parameter) else held.weight


def make_pair(family: str) -> tuple[AdaptedModel, Any]:
    """Our model and PEFT's on one base with one adapter, in float64."""
    model_class, config = FAMILIES[family]
    torch.manual_seed(0)
    plain = model_class(config).to(torch.float64)
    ours = model_class(config).to(torch.float64)
    ours.load_state_dict(plain.state_dict())
    attention.register()
    ours.set_attn_implementation(attention.IMPLEMENTATION)
    plain.set_attn_implementation("eager")
    adapted = adapt(ours, spec(3, **LORA))
    peft = get_peft_model(
        plain, LoraConfig(r=4, lora_alpha=6, target_modules=list(ALL_PROJECTIONS), task_type="CAUSAL_LM")
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith(".lora_B.weight"):
                parameter.normal_(0, 0.3)
            twin_of(peft, name).copy_(parameter)
    return adapted, peft


def plain_loss(model: Any, examples: list[EncodedRow]) -> torch.Tensor:
    """The definition: the mean over all supervised tokens, each row alone, through all logits."""
    losses = []
    for row in examples:
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0]
        log_probabilities = logits.log_softmax(-1)
        losses += [
            -log_probabilities[place - 1, token_id]
            for place, token_id in enumerate(row.token_ids)
            if row.supervised[place]
        ]
    return torch.stack(losses).mean()


def packed_loss(model: AdaptedModel, examples: list[EncodedRow], micro_batch_rows: int) -> float:
    scale = 1.0 / sum(row.supervised_tokens for row in examples)
    total = 0.0
    for part in micro_batches(examples, micro_batch_rows):
        loss = model.loss(pack(part), scale)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_peft_row_by_row(family):
    ours, peft = make_pair(family)
    expected = plain_loss(peft, rows())
    expected.backward()
    assert packed_loss(ours, rows(), micro_batch_rows=6) == pytest.approx(expected.item(), rel=1e-7)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, twin_of(peft, name).grad, **TOLERANCE)


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 4])
def test_micro_batches_of_unequal_supervision_add_up_to_the_batch(micro_batch_rows):
    whole, _ = make_pair("llama")
    parts, _ = make_pair("llama")
    expected = packed_loss(whole, rows(), micro_batch_rows=6)
    assert packed_loss(parts, rows(), micro_batch_rows) == pytest.approx(expected, rel=1e-7)
    gradients = [[p.grad for _, p in model.named_parameters()] for model in (parts, whole)]
    torch.testing.assert_close(*gradients, **TOLERANCE)


def test_only_the_updates_train_and_the_seed_decides_how_they_begin(tmp_path):
    base = save_tiny_base(tmp_path / "base")
    first, again, other = (load_model(base, spec(seed, **LORA)) for seed in (1, 1, 2))
    names = [name for name, _ in first.named_parameters()]
    assert len(names) == 2 * 2 * len(ALL_PROJECTIONS)
    first_module = "model.layers.0.self_attn.q_proj"
    assert names[:2] == [f"{first_module}.lora_A.weight", f"{first_module}.lora_B.weight"]
    assert not [
        name for name, p in first.decoder.named_parameters() if p.requires_grad and "lora_" not in name
    ]
    starts = [[p.detach() for _, p in model.named_parameters()] for model in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not torch.equal(starts[0][0], starts[2][0])


def test_a_chosen_module_is_the_only_one_changed(tmp_path):
    base = save_tiny_base(tmp_path / "base")
    model = load_model(base, spec(lora={"rank": 2, "target_modules": ("v_proj",)}))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert names == [f"model.layers.{n}.self_attn.v_proj.lora_A.weight" for n in (0, 1)]


@pytest.mark.skipif(DEVICE != "cpu", reason="what is on a GPU is mapped from no file")
def test_the_base_stays_in_the_mapping_of_its_file(tmp_path):
    base = save_tiny_base(tmp_path / "base", dtype=torch.bfloat16, vocab_size=20_000)
    model = load_model(base, spec(**LORA))
    packed_loss(model, rows(), micro_batch_rows=3)
    (mapping,) = [m for m in memory_report() if m.path == str(base / "model.safetensors")]
    embeddings_bytes = 20_000 * 48 * 2
    assert mapping.rss_bytes > embeddings_bytes
    assert mapping.copied_bytes == 0
