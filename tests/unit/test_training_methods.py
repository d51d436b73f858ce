"""Every method from its first step to the engine: the loss curve of a reference loop in float32 (PEFT, or
plain PyTorch where PEFT has no such method, with torch's AdamW), and the reference's logits from the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry, linear_shapes
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.values import TrainSpec
from finetuned_service.names import BaseName
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.adapter import adapter_handle, write_adapter
from finetuned_service.training.model import load_model
from finetuned_service.training.packing import pack
from finetuned_service.vocabulary import WeightFormat
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tiny_models import (
    VOCABULARY,
    load_plain,
    oracle_logits,
    peft_warnings_allowed,
    random_prompt,
    save_tiny_base,
)

STEPS = 4
RATE = 5e-2
LORA: dict[str, Any] = {"rank": 4, "alpha": 6.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
PEFT_LORA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": LORA["target_modules"]}
PATTERNS: dict[str, Any] = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3.0}}
IA3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}

IN_PEFT: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"lora": LORA}, LoraConfig(**PEFT_LORA)),
    "patterns": ({"lora": LORA | PATTERNS}, LoraConfig(**PEFT_LORA, **PATTERNS)),
    "rslora": ({"lora": LORA | {"rank_stabilized": True}}, LoraConfig(**PEFT_LORA, use_rslora=True)),
    "dora": ({"lora": LORA | {"decomposed": True}}, LoraConfig(**PEFT_LORA, use_dora=True)),
    "ia3": ({"method": "IA3"}, IA3Config(**IA3)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def save_base(directory: Path) -> Path:
    """With base.json beside it, as the service stores it."""
    save_tiny_base(directory)
    manifest = describe_base(
        directory, name=BaseName.parse("bases/tiny"), weight_format=WeightFormat.FP32, source="random"
    )
    write_manifest(directory, manifest)
    return directory


def spec(base: Path, method: dict[str, Any]) -> TrainSpec:
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", **method})
    shapes = linear_shapes(base / "model.safetensors")
    return resolve_method(wanted, BaseFacts(48, 256, tuple(sorted(shapes))))


def rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for length in (9, 14, 6):
        token_ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(EncodedRow(token_ids, [place > 2 for place in range(length)]))
    return made


def reference_loss(model: Any) -> torch.Tensor:
    """By the definition: every supervised token's -log p, each row alone, through all logits."""
    losses = []
    for row in rows():
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0]
        losses += [-logits[p - 1].log_softmax(-1)[row.token_ids[p]] for p in range(3, len(row.token_ids))]
    return torch.stack(losses).mean()


def reference_curve(model: Any, parameters: list[torch.nn.Parameter]) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    curve = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = reference_loss(model)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def our_curve(model: Any) -> list[float]:
    optimizer = torch.optim.AdamW([p for _, p in model.named_parameters()], lr=RATE, weight_decay=0.0)
    scale = 1.0 / sum(row.supervised_tokens for row in rows())
    curve = []
    model.train(mode=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(pack(rows()), scale)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def served_logits(base: Path, adapter: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    with OfflineEngine(EngineModel.load(base), EngineConfig("", kv_capacity_tokens=512)) as engine:
        return engine.logits(prompt, adapter_handle(adapter, base))


@pytest.mark.parametrize("name", IN_PEFT)
def test_training_is_pefts_and_what_is_served_is_what_was_trained(
    base: Path, tmp_path: Path, name: str
) -> None:
    method, config = IN_PEFT[name]
    ours = load_model(base, spec(base, method))
    with peft_warnings_allowed():
        peft = get_peft_model(load_plain(base), config)
    twins = {n.replace(".default", ""): p for n, p in peft.named_parameters() if p.requires_grad}
    begun = {f"base_model.model.{n.removesuffix('.weight')}": p for n, p in ours.named_parameters()}
    assert {n.removesuffix(".weight") for n in twins} == set(begun)
    with torch.no_grad():
        for twin, parameter in twins.items():
            parameter.copy_(begun[twin.removesuffix(".weight")])
    expected = reference_curve(peft, list(twins.values()))
    assert our_curve(ours) == pytest.approx(expected, rel=2e-5)
    assert expected[-1] < expected[0]

    write_adapter(tmp_path, ours.method, "bases/tiny", torch.float32)
    (tmp_path / "README.md").unlink(missing_ok=True)
    prompt = random_prompt(3, 20)
    with peft_warnings_allowed():
        reread = PeftModel.from_pretrained(load_plain(base), str(tmp_path)).eval()
    logits = oracle_logits(reread, prompt)
    torch.testing.assert_close(oracle_logits(peft, prompt), logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(served_logits(base, tmp_path, prompt), logits, atol=2e-4, rtol=2e-4)
    facts = check_adapter(tmp_path, BaseGeometry("", "", linear_shapes(base / "model.safetensors")), 64)
    assert facts.parameters == sum(p.numel() for _, p in ours.named_parameters())
