"""Adapters of every method on the native path, in one batch: against PEFT, transformers changed by hand and the
plain path, and bit for bit as each is alone.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Residency, Sampling, SetResidency, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.native.model import NativeModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import InvalidAdapterFiles, ResourceExhausted
from own_layouts import oracle, save_bottleneck, save_parameters
from safetensors.torch import load_file, save_file
from tiny_models import (
    checked_adapter,
    load_peft,
    oracle_logits,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
    save_tiny_ia3,
)
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

CONFIG = EngineConfig(
    base_directory="",
    threads=2,
    max_running_sequences=16,
    max_prefill_tokens=512,
    kv_capacity_tokens=4096,
    device_budget_bytes=4 * 1024 * 1024,
    host_budget_bytes=16 * 1024 * 1024,
)
TOLERANCE = 0.03
"""Of the spread of the logits in float32; see `test_native_stories`."""
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
LAYER = tuple(
    f"model.layers.1.{name}.weight"
    for name in (
        "input_layernorm",
        "post_attention_layernorm",
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
)
PARTS = tuple(f"model.layers.{number}.{part}" for number in (0, 1) for part in ("self_attn", "mlp"))
LAYERS = ("model.layers.0", "model.layers.1")
EMBEDDING = "model.embed_tokens.weight"

PEFT = {
    "lora": lambda to, base: save_tiny_adapter(to, base, seed=1, spread=0.1),
    "dora": lambda to, base: save_tiny_adapter(to, base, seed=2, spread=0.1, use_dora=True, rank=3),
    "dora-few": lambda to, base: save_tiny_adapter(
        to, base, seed=3, spread=0.1, use_dora=True, target_modules=("q_proj", "down_proj"), use_rslora=True
    ),
    "ia3": lambda to, base: save_tiny_ia3(to, base, seed=4),
    "ia3-inputs": lambda to, base: save_tiny_ia3(
        to,
        base,
        seed=5,
        target_modules=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"),
        feedforward_modules=("v_proj", "o_proj", "gate_proj", "down_proj"),
    ),
    "ia3-saved": lambda to, base: save_tiny_ia3(to, base, seed=9, modules_to_save=("model.norm", "q_proj")),
    "saved": lambda to, base: save_tiny_adapter(
        to,
        base,
        seed=6,
        spread=0.1,
        target_modules=("q_proj", "up_proj"),
        modules_to_save=("lm_head", "o_proj"),
    ),
}
OWN = {
    "head": lambda to, base: save_parameters(to, base, ["lm_head.weight"], method="HEAD", seed=7),
    "layers": lambda to, base: save_parameters(
        to, base, [*LAYER, "model.norm.weight"], method="LAYERS", seed=8
    ),
    "full": lambda to, base: save_parameters(
        to,
        base,
        [*LAYER, *(n.replace("layers.1", "layers.0") for n in LAYER), "model.norm.weight", EMBEDDING],
        method="FULL",
        seed=9,
        tied={EMBEDDING: ["lm_head"]},
    ),
    "houlsby": lambda to, base: save_bottleneck(to, base, PARTS, seed=10),
    "pfeiffer": lambda to, base: save_bottleneck(
        to, base, LAYERS, seed=11, width=19, activation="RELU", scaling=2.0
    ),
    "parallel": lambda to, base: save_bottleneck(
        to, base, [*PARTS[1:], *LAYERS], seed=12, width=5, activation="SILU", parallel=True
    ),
    "everywhere": lambda to, base: save_bottleneck(to, base, [*PARTS, *LAYERS], seed=13, width=33),
}
NAMES = (*PEFT, *OWN)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16, head_dim=16, **SIZES)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {name: make(root / name, base) for name, make in (PEFT | OWN).items()}


@pytest.mark.parametrize("name", ["saved", "ia3-saved"])
def test_files_have_the_dtypes_that_peft_writes(base, adapters, name):
    """Over a base in bfloat16: what is added in float32, whole modules as the base has them."""
    assert check_adapter(adapters[name].directory, BaseGeometry.of_files(base), 64).dtype == "BF16, F32"


def oracle_of(base, adapters, name, dtype):
    return (load_peft if name in PEFT else oracle)(base, adapters[name], dtype)


@pytest.mark.parametrize("name", NAMES)
def test_alone_it_is_nearer_to_float32_than_bfloat16_is_there(base, model, adapters, name):
    prompt = random_prompt(1, 70)
    exact = oracle_logits(oracle_of(base, adapters, name, torch.float32), prompt)
    rounded = oracle_logits(oracle_of(base, adapters, name, torch.bfloat16), prompt)
    plain = oracle_logits(load_peft(base, None, torch.float32), prompt)
    with OfflineEngine(model, CONFIG) as engine:
        actual = engine.logits(prompt, adapters[name].handle)
    ours, theirs, changed = ((found - exact).square().mean().sqrt() for found in (actual, rounded, plain))
    assert ours < 1.1 * theirs  # not always strictly below: scaling is folded into B
    assert ours < 0.1 * changed
    with OfflineEngine(EngineModel.load(base, dtype=torch.float32), CONFIG) as engine:
        expected = engine.logits(prompt, adapters[name].handle)
    assert (actual - expected).abs().max() < TOLERANCE * (expected.max() - expected.min())


def asked_of(adapters):
    """Two of each method, of LoRA and of the plain base; with log-probabilities."""
    handles = [None, *(adapters[name].handle for name in NAMES)]
    return [
        Submit(
            i,
            random_prompt(10 + i, 3 + (7 * i) % 40),
            handles[i % len(handles)],
            Sampling(max_new_tokens=5, ignore_eos=True, logprobs=3),
        )
        for i in range(2 * len(handles))
    ]


@pytest.fixture(scope="module")
def alone(model, adapters):
    replies = []
    for submit in asked_of(adapters):
        with OfflineEngine(model, dataclasses.replace(CONFIG, threads=1)) as engine:
            replies += engine.generate([submit])
    return replies


@pytest.mark.parametrize(("max_prefill_tokens", "running"), [(512, 28), (7, 5)])
def test_all_methods_in_one_batch_are_each_as_alone_to_the_last_bit(
    model, adapters, alone, max_prefill_tokens, running
):
    config = dataclasses.replace(CONFIG, max_prefill_tokens=max_prefill_tokens, max_running_sequences=running)
    with OfflineEngine(model, config) as engine:
        assert engine.generate(asked_of(adapters)) == alone


def test_a_shared_beginning_changes_no_bit(model, adapters):
    """Prompts that begin alike under every adapter, asked twice: the second time from the cache."""
    shared = random_prompt(2, 70)
    asked = [
        Submit(
            i,
            (*shared, *random_prompt(40 + i, 5)),
            adapters[name].handle,
            Sampling(4, ignore_eos=True, logprobs=2),
        )
        for i, name in enumerate(NAMES)
    ]
    cold = []
    for submit in asked:
        with OfflineEngine(model, CONFIG) as engine:
            cold += engine.generate([submit])
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=40)) as engine:
        assert engine.generate(asked) == cold
        again = [dataclasses.replace(submit, request_id=100 + submit.request_id) for submit in asked]
        assert engine.generate(again) == cold
        assert engine.inspect().counters["prefix_tokens_reused"] >= 64 * len(NAMES)


def test_adapters_take_turns_where_there_is_no_room_for_all(model, adapters, alone):
    largest = 0
    for name in NAMES:
        with OfflineEngine(model, CONFIG) as engine:
            engine.logits(random_prompt(1, 3), adapters[name].handle)
            (resident,) = engine.inspect().adapters
            largest = max(largest, resident.device_bytes)
    small = dataclasses.replace(CONFIG, device_budget_bytes=largest, host_budget_bytes=4 * largest)
    with OfflineEngine(model, small) as engine:
        assert engine.generate(asked_of(adapters)) == alone
        assert engine.inspect().counters["adapter_evictions"] > 0
    with (
        OfflineEngine(model, dataclasses.replace(small, device_budget_bytes=largest - 1)) as engine,
        pytest.raises(ResourceExhausted, match="does not fit into the serving layout even alone"),
    ):
        engine.logits(random_prompt(1, 3), adapters["full"].handle)


def test_what_a_version_takes_is_told_and_given_back(model, adapters):
    with OfflineEngine(model, CONFIG) as engine:
        engine.logits(random_prompt(1, 3), adapters["full"].handle)
        (full,) = engine.inspect().adapters
        weights_bytes = model.weights.packed_bytes  # embedding and head are one
        assert full.modules == 20
        assert weights_bytes <= full.device_bytes < 1.05 * weights_bytes
        assert full.resident_bytes == full.device_bytes
        engine.deliver(SetResidency(1, adapters["full"].handle, Residency.STORED))
        engine._await_answer()
        assert engine.inspect().adapters == ()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_what_is_not_finite_as_served_is_refused(base, model, tmp_path, name):
    adapter = save_parameters(tmp_path / "large", base, [name], method="LAYERS", seed=1)
    file = adapter.directory / "adapter_model.safetensors"
    ((stored, tensor),) = load_file(file).items()
    large = tensor.float()
    large.view(-1)[-1] = 3.4e38  # finite in float32, rounded up to infinity in bfloat16
    save_file({stored: large}, file)
    adapter = checked_adapter(adapter.directory, base)
    with OfflineEngine(model, CONFIG) as engine:
        if name.endswith("norm.weight"):
            assert engine.logits(random_prompt(1, 3), adapter.handle).isfinite().all()
        else:
            with pytest.raises(InvalidAdapterFiles, match="not finite"):
                engine.logits(random_prompt(1, 3), adapter.handle)


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(
            vocab_size=97,
            tie_word_embeddings=False,
            num_hidden_layers=2,
            initializer_range=0.1,
            **SIZES | {"hidden_size": 96},
        ),
        Qwen3Config(
            vocab_size=97,
            head_dim=80,
            tie_word_embeddings=True,
            num_hidden_layers=2,
            initializer_range=0.1,
            **SIZES,
        ),
    ],
    ids=["biases", "head norms"],
)
def test_biases_and_head_norms_of_other_families(library, tmp_path, config):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    base = tmp_path / "base"
    made.save_pretrained(base)
    names = [name for name, _ in made.named_parameters()]
    tied = {EMBEDDING: ["lm_head"]} if config.tie_word_embeddings else {}
    few = [name for name in names if name.endswith(("bias", "q_norm.weight", "k_norm.weight"))]
    queries = ("q_proj", "k_proj", "down_proj")
    adapters = {
        "full": save_parameters(tmp_path / "full", base, names, method="FULL", seed=1, tied=tied),
        "few": save_parameters(tmp_path / "few", base, few, method="LAYERS", seed=2),
        "dora": save_tiny_adapter(
            tmp_path / "dora", base, seed=3, spread=0.1, use_dora=True, target_modules=queries
        ),
        "ia3": save_tiny_ia3(tmp_path / "ia3", base, seed=4, target_modules=queries),
    }
    prompt = random_prompt(5, 60)
    model = NativeModel.load(base, library)
    for name, adapter in adapters.items():
        exact, theirs = (
            oracle_logits(oracle_of(base, adapters, name, dtype), prompt)
            for dtype in (torch.float32, torch.bfloat16)
        )
        with OfflineEngine(model, CONFIG) as engine:
            ours = engine.logits(prompt, adapter.handle)
        assert (ours - exact).square().mean() < (theirs - exact).square().mean()
