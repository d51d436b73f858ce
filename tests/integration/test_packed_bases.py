"""Adapters of every method over INT8 and NF4 bases in one batch, each as transformers and PEFT compute it alone over
the weights that the packed ones stand for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from own_layouts import oracle, save_bottleneck, save_parameters
from packed_oracle import pack, unpacked, unpacked_model
from tiny_bases import make_tiny_base
from tiny_models import (
    TinyAdapter,
    checked_adapter,
    load_peft,
    oracle_logits,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_ia3,
)

CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=32,
    max_prefill_tokens=64,
    kv_capacity_tokens=4096,
    device_budget_bytes=8 * 1024 * 1024,
    host_budget_bytes=16 * 1024 * 1024,
)
NEW_TOKENS = 6
LAYER = "model.layers.1"
BIASES = [f"{LAYER}.self_attn.{part}_proj.bias" for part in "qkvo"]
FORMATS = {
    "INT8": ("INT8", False, True),
    "INT8 with embeddings": ("INT8", True, True),
    "INT8 with embeddings and a head": ("INT8", True, False),
    "NF4": ("NF4", False, True),
    "NF4 with a head": ("NF4", False, False),
}
"""Name of the format, whether embeddings are packed, whether the head is the embedding."""

PEFT = {
    "lora": lambda to, base: save_tiny_adapter(to, base, seed=1),
    "rslora": lambda to, base: save_tiny_adapter(
        to, base, seed=2, rank=7, use_rslora=True, target_modules=("q_proj", "down_proj")
    ),
    "dora": lambda to, base: save_tiny_adapter(to, base, seed=3, rank=3, use_dora=True),
    "ia3": lambda to, base: save_tiny_ia3(to, base, seed=4),
}
OWN = {
    "houlsby": lambda to, base: save_bottleneck(to, base, [f"{LAYER}.self_attn", f"{LAYER}.mlp"], seed=5),
    "parallel": lambda to, base: save_bottleneck(to, base, [LAYER], seed=6, activation="SILU", parallel=True),
    "head": lambda to, base: save_parameters(to, base, ["lm_head.weight"], method="HEAD", seed=7),
    "biases": lambda to, base: save_parameters(to, base, BIASES, method="LAYERS", seed=8),
    "layers": lambda to, base: save_parameters(
        to, base, [*BIASES, *(f"{LAYER}.mlp.{part}_proj.weight" for part in ("gate", "down"))], method="LAYERS", seed=9
    ),
}  # fmt: skip
NAMES = (*PEFT, *OWN)


@pytest.fixture(scope="module", params=FORMATS)
def bases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed base, and a plain one of the weights that it stands for. Its blocks go on from row to row."""
    weight_format, embeddings, tied = FORMATS[request.param]
    root = tmp_path_factory.mktemp("bases")
    source = make_tiny_base(root / "tiny", tied=tied, attention_bias=True)
    packed = pack(source, root / "packed", weight_format, embeddings=embeddings)
    unpacked_model(source, packed, torch.float32).save_pretrained(root / "plain")
    return packed, root / "plain"


@pytest.fixture(scope="module")
def model(bases: tuple[Path, Path]) -> EngineModel:
    return EngineModel.load(bases[0])


@pytest.fixture(scope="module")
def adapters(bases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyAdapter]:
    """Made over the plain base, and found to fit the packed one, as an import finds them."""
    packed, plain = bases
    root = tmp_path_factory.mktemp("adapters")
    made = {name: make(root / name, plain) for name, make in (PEFT | OWN).items()}
    return {name: checked_adapter(adapter.directory, packed) for name, adapter in made.items()}


@pytest.fixture(scope="module")
def oracles(bases: tuple[Path, Path], adapters: dict[str, TinyAdapter]) -> dict[str | None, Any]:
    plain = bases[1]
    own = {name: oracle(plain, adapters[name], torch.float32) for name in OWN}
    return {None: load_peft(plain, None)} | {name: load_peft(plain, adapters[name]) for name in PEFT} | own


def test_a_mixed_batch_says_what_each_says_alone(
    model: EngineModel, adapters: dict[str, TinyAdapter], oracles: dict[str | None, Any]
) -> None:
    """Prompts of one row and of many: few rows and many take different kernels."""
    asked = [(name, random_prompt(10 + i, 1 + (7 * i) % 40)) for i, name in enumerate((None, *NAMES) * 2)]
    submits = [
        Submit(i, prompt, adapters[name].handle if name else None, Sampling(NEW_TOKENS, ignore_eos=True))
        for i, (name, prompt) in enumerate(asked)
    ]
    with OfflineEngine(model, CONFIG) as engine:
        replies = [list(reply.token_ids) for reply in engine.generate(submits)]
    assert replies == [oracle_tokens(oracles[name], prompt, NEW_TOKENS) for name, prompt in asked]


@pytest.mark.parametrize("name", [None, *NAMES])
def test_logits_are_those_of_each_alone(
    model: EngineModel, adapters: dict[str, TinyAdapter], oracles: dict[str | None, Any], name: str | None
) -> None:
    prompt = random_prompt(1, 40)
    with OfflineEngine(model, CONFIG) as engine:
        found = engine.logits(prompt, adapters[name].handle if name else None)
    torch.testing.assert_close(found, oracle_logits(oracles[name], prompt), atol=1e-3, rtol=1e-3)
    if name is not None:
        plain = oracle_logits(oracles[None], prompt)
        assert (oracle_logits(oracles[name], prompt) - plain).abs().max() > 0.05


def test_the_weights_in_memory_are_those_of_the_file(bases: tuple[Path, Path], model: EngineModel) -> None:
    """After all that was served."""
    for name, weight in unpacked(bases[0]).items():
        if ".layers." in name:
            torch.testing.assert_close(model.linear_weight(name).double(), weight, rtol=1e-5, atol=1e-7)
