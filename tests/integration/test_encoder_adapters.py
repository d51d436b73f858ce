"""Adapters of every method over a base that encodes, served in one batch: each equals PEFT on transformers' own model."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import check_adapter, spell_out_config, stored_digest
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import (
    AdapterHandle,
    Encode,
    Encoded,
    Failed,
    Sampling,
    Started,
    Submit,
)
from finetuned_service.training.adapter import adapter_handle
from finetuned_service.vocabulary import Method, Pooling, Task
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_bottlenecks import add_bottlenecks
from tiny_encoders import make_encoder_base
from tiny_models import peft_warnings_allowed
from transformers import AutoModel

INPUTS = [(2, 7, 9, 3), (2, 5, 3), (2, 8, 8, 3), (2, *range(5, 20), 3)]
HEAD = {
    "task": "text-classification",
    "problem": "SINGLE_LABEL",
    "labels": ["a", "b", "c"],
    "pooling": "MEAN",
}
EXTRACTION = "FEATURE_EXTRACTION"
BERT_CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "dense"], task_type=EXTRACTION),
    "rslora": LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["key", "dense"]),
    "dora": LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=["query", "output.dense"]),
    "ia3": IA3Config(
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
        task_type=EXTRACTION,
    ),
}


def transformers_model(base: Path) -> Any:
    """As a base is stored: without the layer over the first token that only transformers' own heads use."""
    kind = json.loads((base / "config.json").read_text())["model_type"]
    bare = {} if kind in {"distilbert", "electra"} else {"add_pooling_layer": False}
    return AutoModel.from_pretrained(base, attn_implementation="eager", **bare)


def save_peft(
    directory: Path, base: Path, config: PeftConfig, *, seed: int, head: bool = False
) -> AdapterHandle:
    """A random adapter as PEFT saves it; with a head of three labels as it stands in our files."""
    with peft_warnings_allowed():
        model: Any = get_peft_model(transformers_model(base), copy.deepcopy(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or "ia3" in name:
                parameter.copy_(0.6 + torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    if head:
        add_head(directory, generator)
    return adapter_handle(directory, base)


def add_head(directory: Path, generator: torch.Generator) -> None:
    path, weights = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head": HEAD}))
    classifier = {
        "weight": torch.randn(3, 32, generator=generator),
        "bias": torch.randn(3, generator=generator),
    }
    named = {f"base_model.model.classifier.{name}": tensor for name, tensor in classifier.items()}
    save_file({**load_file(weights), **named}, weights)


def save_parameters(
    directory: Path, base: Path, *names: str, seed: int, method: Method = Method.LAYERS
) -> AdapterHandle:
    """Random values in the place of the base's parameters with one of these parts in their names, and a head."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    changed = {
        name: parameter + 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in transformers_model(base).state_dict().items()
        if any(part in name for part in names)
    }
    config = {"peft_type": "PARAMETERS", "method": str(method), "parameters": sorted(changed)}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": tensor for name, tensor in changed.items()}
    save_file(named, directory / "adapter_model.safetensors")
    add_head(directory, generator)
    return adapter_handle(directory, base)


def save_bottlenecks(directory: Path, base: Path, *ends: str, seed: int, head: bool = False) -> AdapterHandle:
    """Random bottlenecks at the modules with these dotted ends."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    width, tensors = 3, {}
    modules = [
        name
        for name, _ in transformers_model(base).named_modules()
        if name.endswith(tuple(f".{e}" for e in ends))
    ]
    for module in modules:
        for part, shape in (("down", (width, 32)), ("up", (32, width))):
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                tensors[f"base_model.model.{module}.adapter_{part}.{kind}"] = 0.4 * torch.randn(
                    size, generator=generator
                )
    config = {
        "peft_type": "BOTTLENECK",
        "target_modules": modules,
        "width": width,
        "activation": "GELU",
        "scaling": 1,
    }
    (directory / "adapter_config.json").write_text(json.dumps({**config, "parallel": False}))
    save_file(tensors, directory / "adapter_model.safetensors")
    if head:
        add_head(directory, generator)
    return adapter_handle(directory, base)


def head_alone(directory: Path, base: Path) -> AdapterHandle:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "HEAD"}))
    save_file({}, directory / "adapter_model.safetensors")
    add_head(directory, torch.Generator().manual_seed(99))
    return adapter_handle(directory, base)


@torch.inference_mode()
def oracle(base: Path, adapter: AdapterHandle | None, token_ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mean of what transformers with PEFT tells of one input alone, through the head if there is one."""
    model = transformers_model(base)
    tensors: dict[str, torch.Tensor] = {}
    if adapter is not None:
        directory = Path(adapter.directory)
        tensors = load_file(directory / "adapter_model.safetensors")
        kind = json.loads((directory / "adapter_config.json").read_text())["peft_type"]
        if kind == "PARAMETERS":
            own = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
            found = model.load_state_dict(own, strict=False)
            assert set(found.unexpected_keys) == {"classifier.weight", "classifier.bias"}
        elif kind == "BOTTLENECK":
            add_bottlenecks(
                model, {n.removeprefix("base_model.model."): tensor for n, tensor in tensors.items()}
            )
        elif kind != "HEAD":
            with peft_warnings_allowed(), warnings.catch_warnings():
                # It says that it reads the update and leaves out `head`, and so it does.
                warnings.filterwarnings("ignore", message="Unexpected keyword arguments ..head")
                model = PeftModel.from_pretrained(model, adapter.directory)
    vector = model.eval()(input_ids=torch.tensor([token_ids])).last_hidden_state[0].mean(0)
    weight = tensors.get("base_model.model.classifier.weight")
    if weight is not None:
        vector = weight @ vector + tensors["base_model.model.classifier.bias"]
    return vector.numpy()


def serve(
    base: Path, adapters: list[AdapterHandle | None], modules: dict[str, int]
) -> dict[int, np.ndarray[Any, Any]]:
    """Every adapter's vector of every input, all in one batch; request `adapter * 100 + input`."""
    settings: dict[str, Any] = {"max_running_sequences": 64, "max_prefill_tokens": 4096}
    loop = EngineLoop(load_model(base), EngineConfig(str(base), **settings))
    for number, adapter in enumerate(adapters):
        for index, token_ids in enumerate(INPUTS):
            request = number * 100 + index
            loop.deliver(Submit(request, token_ids, adapter, Sampling(1), encode=Encode(Pooling.MEAN)))
    found: dict[int, np.ndarray[Any, Any]] = {}
    while len(found) < len(adapters) * len(INPUTS):
        for event in loop.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Encoded):
                found[event.request_id] = np.frombuffer(event.data, "<f4")
            elif isinstance(event, Started):
                adapter = adapters[event.request_id // 100]
                assert event.modules_changed == (modules[adapter.digest] if adapter else 0)
    loop.close()
    return found


def check_all(base: Path, adapters: list[AdapterHandle | None]) -> None:
    geometry = BaseGeometry.of_directory(base)
    facts = {a.digest: check_adapter(Path(a.directory), geometry, 64) for a in adapters if a}
    found = serve(base, adapters, {digest: fact.modules for digest, fact in facts.items()})
    for number, adapter in enumerate(adapters):
        for index, token_ids in enumerate(INPUTS):
            expected = oracle(base, adapter, token_ids)
            np.testing.assert_allclose(found[number * 100 + index], expected, atol=3e-5, rtol=1e-4)


def test_every_method_in_one_batch_equals_peft_alone(tmp_path: Path) -> None:
    base = make_encoder_base(tmp_path / "base")
    adapters: list[AdapterHandle | None] = [None, head_alone(tmp_path / "head", base)]
    for seed, (name, config) in enumerate(BERT_CONFIGS.items()):
        adapters.append(save_peft(tmp_path / name, base, config, seed=seed, head=name in {"lora", "ia3"}))
    adapters.append(save_peft(tmp_path / "more", base, BERT_CONFIGS["lora"], seed=9))
    adapters.append(save_parameters(tmp_path / "full", base, "", seed=10, method=Method.FULL))
    adapters.append(
        save_parameters(tmp_path / "layers", base, "layer.1.", "position", "LayerNorm.b", seed=11)
    )
    adapters.append(save_bottlenecks(tmp_path / "houlsby", base, "output.dense", seed=13, head=True))
    adapters.append(save_bottlenecks(tmp_path / "pfeiffer", base, "layer.0", "layer.1", seed=14))
    # PEFT's own modules to save: a linear module, and one that is none.
    saved = LoraConfig(
        r=2, target_modules=["query"], modules_to_save=["layer.0.output.dense", "embeddings.LayerNorm"]
    )
    adapters.append(save_peft(tmp_path / "saved", base, saved, seed=12))
    check_all(base, adapters)


@pytest.mark.parametrize(
    ("model_type", "targets", "summands"),
    [
        ("distilbert", ["q_lin", "lin2"], ["out_lin", "lin2", "layer.1"]),
        ("albert", ["query", "ffn"], ["attention.dense", "ffn_output", "albert_layers.0"]),
        ("electra", ["key"], ["output.dense"]),
        ("roberta", ["key"], ["layer.0"]),
    ],
)
def test_other_encoders_name_their_modules_otherwise(
    tmp_path: Path, model_type: str, targets: list[str], summands: list[str]
) -> None:
    base = make_encoder_base(tmp_path / "base", model_type)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    lora = save_peft(tmp_path / "lora", base, config, seed=1, head=True)
    full = save_parameters(tmp_path / "full", base, "", seed=2, method=Method.FULL)
    check_all(base, [None, lora, full, save_bottlenecks(tmp_path / "bottlenecks", base, *summands, seed=3)])


def test_what_is_stored_keeps_its_digest_and_opens_in_peft(tmp_path: Path) -> None:
    base = make_encoder_base(tmp_path / "base")
    handle = save_peft(tmp_path / "lora", base, BERT_CONFIGS["lora"], seed=1, head=True)
    facts = check_adapter(tmp_path / "lora", BaseGeometry.of_directory(base), 64)
    assert (facts.method, facts.task, facts.rank) == (Method.LORA, Task.TEXT_CLASSIFICATION, 4)
    assert facts.head is not None
    assert facts.head.labels == ("a", "b", "c")
    before = oracle(base, handle, INPUTS[0])
    spell_out_config(tmp_path / "lora")
    assert stored_digest(tmp_path / "lora") == handle.digest
    np.testing.assert_array_equal(oracle(base, handle, INPUTS[0]), before)
    plain = save_peft(tmp_path / "plain", base, BERT_CONFIGS["lora"], seed=1)
    assert (
        check_adapter(Path(plain.directory), BaseGeometry.of_directory(base), 64).task
        is Task.FEATURE_EXTRACTION
    )
