"""Every method from its first step to the engine: the loss curve of a reference loop in float32 (PEFT, or
plain PyTorch where PEFT has no such method, with torch's AdamW), and the reference's logits from the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.names import BaseName
from finetuned_service.training.adapter import adapter_handle, write_adapter
from finetuned_service.training.model import load_model
from finetuned_service.vocabulary import WeightFormat
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from reference_loops import our_curve, reference_curve, replies_alone_and_together
from tiny_models import (
    load_plain,
    oracle_logits,
    peft_warnings_allowed,
    random_prompt,
    save_tiny_base,
)

LORA: dict[str, Any] = {"rank": 4, "alpha": 6.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
PEFT_LORA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": LORA["target_modules"]}
PATTERNS: dict[str, Any] = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3.0}}
IA3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}

SAVED = {"modules_to_save": ["lm_head", "model.norm"]}

IN_PEFT: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"lora": LORA}, LoraConfig(**PEFT_LORA)),
    "patterns": ({"lora": LORA | PATTERNS}, LoraConfig(**PEFT_LORA, **PATTERNS)),
    "rslora": ({"lora": LORA | {"rank_stabilized": True}}, LoraConfig(**PEFT_LORA, use_rslora=True)),
    "dora": ({"lora": LORA | {"decomposed": True}}, LoraConfig(**PEFT_LORA, use_dora=True)),
    "saved": ({"lora": LORA | SAVED}, LoraConfig(**PEFT_LORA, **SAVED)),
    "ia3": ({"method": "IA3"}, IA3Config(**IA3)),
    "ia3 saved": (
        {"method": "IA3", "ia3": {"modules_to_save": ["lm_head", "model.norm", "o_proj"]}},
        IA3Config(**IA3, modules_to_save=["lm_head", "model.norm", "o_proj"]),
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def save_base(directory: Path, *, tied: bool = True) -> Path:
    """With base.json beside it, as the service stores it."""
    save_tiny_base(directory, tied=tied)
    manifest = describe_base(
        directory, name=BaseName.parse("bases/tiny"), weight_format=WeightFormat.FP32, source="random"
    )
    write_manifest(directory, manifest)
    return directory


def spec(base: Path, method: dict[str, Any]) -> TrainSpec:
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", **method})
    return resolve_method(wanted, BaseFacts.of_directory(base))


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
    twins = {
        n.replace(".modules_to_save.default", "").replace(".default", ""): p
        for n, p in peft.named_parameters()
        if p.requires_grad
    }
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
    facts = check_adapter(tmp_path, BaseGeometry.of_files(base), 64)
    assert facts.parameters == sum(p.numel() for _, p in ours.named_parameters())


class PlainBottleneck(torch.nn.Module):
    """By the formula, from arrays by their names in the file."""

    def __init__(self, arrays: dict[str, torch.Tensor], activation: str, scaling: float) -> None:
        super().__init__()
        self.arrays = torch.nn.ParameterDict(
            {n.replace(".", "_"): p.cpu().clone() for n, p in arrays.items()}
        )
        self.activation, self.scaling = activation, scaling

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        arrays = self.arrays
        z = h @ arrays["adapter_down_weight"].T + arrays["adapter_down_bias"]
        z = {
            "RELU": lambda: z.clamp(min=0),
            "GELU": lambda: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
            "SILU": lambda: z / (1 + torch.exp(-z)),
        }[self.activation]()
        return self.scaling * (z @ arrays["adapter_up_weight"].T + arrays["adapter_up_bias"])


def plain_with_bottlenecks(model: Any, arrays: dict[str, torch.Tensor], settings: Any) -> list[Any]:
    """Put bottlenecks where the papers do, by overriding the layers' own forward; returns what trains."""
    made: dict[str, PlainBottleneck] = {}
    for name in settings.target_modules:
        own = {n.removeprefix(f"{name}."): p.detach() for n, p in arrays.items() if _of(n) == name}
        made[name] = PlainBottleneck(own, settings.activation, settings.scaling)
    for number, layer in enumerate(model.model.layers):
        here = f"model.layers.{number}"

        def forward(
            x: torch.Tensor, *, layer: Any = layer, here: str = here, position_embeddings: Any, **_: Any
        ) -> torch.Tensor:
            read = layer.input_layernorm(x)
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None].to(x.dtype)
            out = layer.self_attn(read, position_embeddings=position_embeddings, attention_mask=mask)[0]
            out = out + made[f"{here}.self_attn"](out) if f"{here}.self_attn" in made else out
            x = x + out
            read = layer.post_attention_layernorm(x)
            out = layer.mlp(read)
            if f"{here}.mlp" in made:
                out = out + made[f"{here}.mlp"](read if settings.placement == "PARALLEL" else out)
            x = x + out
            return x + made[here](x) if here in made else x

        layer.forward = forward
    return [parameter for module in made.values() for parameter in module.parameters()]


def _of(name: str) -> str:
    return name.partition(".adapter_")[0]


BOTTLENECKS: dict[str, dict[str, Any]] = {
    "houlsby": {},
    "pfeiffer": {"placement": "PFEIFFER", "reduction_factor": 6.0, "activation": "RELU"},
    "parallel": {"placement": "PARALLEL", "width": 5, "activation": "SILU", "scaling": 4.0},
    "chosen": {"target_modules": ["layers.1.mlp", "layers.0"], "scaling": 0.5},
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_bottlenecks_train_and_serve_as_a_plain_loop_in_float64(
    base: Path, tmp_path: Path, name: str
) -> None:
    wanted = spec(base, {"method": "BOTTLENECK", "bottleneck": BOTTLENECKS[name]})
    ours = load_model(base, wanted)
    assert len(ours.method.parameters) == 4 * len(wanted.bottleneck.target_modules) > 0
    plain = load_plain(base, torch.float64).requires_grad_(requires_grad=False)
    arrays = {n: p.double() for n, p in ours.named_parameters()}
    expected = reference_curve(plain, plain_with_bottlenecks(plain, arrays, wanted.bottleneck))
    assert our_curve(ours) == pytest.approx(expected, rel=2e-5)
    assert expected[-1] < expected[0]

    write_adapter(tmp_path, ours.method, "bases/tiny", torch.float32)
    trained = load_plain(base, torch.float64)
    plain_with_bottlenecks(
        trained, {n: p.detach().double() for n, p in ours.named_parameters()}, wanted.bottleneck
    )
    prompt = random_prompt(3, 20)
    logits = oracle_logits(trained, prompt)
    torch.testing.assert_close(served_logits(base, tmp_path, prompt), logits, atol=2e-4, rtol=2e-4)


CHOSEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "head": ({"method": "HEAD"}, ["lm_head."]),
    "last": ({"method": "LAYERS", "layers": {"last": 1}}, ["layers.1."]),
    "named": (
        {"method": "LAYERS", "layers": {"layers": [0], "modules": ["model.norm", "layers.1.mlp.up_proj"]}},
        ["layers.0.", "model.norm", "layers.1.mlp.up_proj"],
    ),
    "embedding": ({"method": "LAYERS", "layers": {"modules": ["embed_tokens"]}}, ["embed_tokens"]),
    "full": ({"method": "FULL"}, [""]),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_parameters_train_and_serve_as_in_plain_transformers(
    tmp_path: Path, name: str, tied: bool
) -> None:
    method, parts = CHOSEN[name]
    base = save_base(tmp_path / "base", tied=tied)
    ours = load_model(base, spec(base, method))
    plain = load_plain(base)
    if tied and name == "head":
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    for parameter_name, parameter in plain.named_parameters():
        parameter.requires_grad_(any(part in parameter_name for part in parts))
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    assert set(dict(ours.named_parameters())) == set(trained)
    before = {n: p.detach().clone() for n, p in plain.named_parameters()}
    expected = reference_curve(plain, list(trained.values()))
    assert our_curve(ours) == pytest.approx(expected, rel=5e-5)
    assert expected[-1] < expected[0]
    # What did not train is as it was, bit for bit.
    assert all(torch.equal(p, before[n]) for n, p in plain.named_parameters() if n not in trained)

    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", ours.method, "bases/tiny", torch.float32)
    again = load_plain(base)
    if tied and name == "head":
        again.lm_head.weight = torch.nn.Parameter(again.lm_head.weight.detach().clone())
    with torch.no_grad():
        for n, p in again.named_parameters():
            if n in trained:
                p.copy_(dict(ours.named_parameters())[n])
    prompt = random_prompt(3, 20)
    served = served_logits(base, tmp_path / "adapter", prompt)
    torch.testing.assert_close(served, oracle_logits(again, prompt), atol=2e-4, rtol=2e-4)


MIXED: list[dict[str, Any]] = [
    {"lora": LORA},
    {"lora": LORA | {"decomposed": True}},
    {"lora": LORA | SAVED},
    {"method": "IA3"},
    {"method": "BOTTLENECK"},
    {"method": "BOTTLENECK", "bottleneck": {"placement": "PFEIFFER"}},
    *(method for method, _ in CHOSEN.values()),
]


def test_all_methods_run_in_one_batch_as_each_does_alone(base: Path, tmp_path: Path) -> None:
    alone, together = replies_alone_and_together(
        base, tmp_path, [load_model(base, spec(base, method)) for method in MIXED]
    )
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) > len(MIXED) // 2
