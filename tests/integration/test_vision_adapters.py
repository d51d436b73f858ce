"""Adapters of every method over a vision base, served in one batch: each equals PEFT, or transformers' own model with the
adapter's parameters set.
"""

from __future__ import annotations

import copy
import json
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
    Pixels,
    Sampling,
    Started,
    Submit,
)
from finetuned_service.errors import InvalidAdapterFiles
from finetuned_service.training.adapter import adapter_handle
from finetuned_service.vocabulary import Method, Pooling, Task
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_encoders import make_vision_base
from tiny_models import peft_warnings_allowed
from transformers import AutoModel

HEAD = {"task": "image-classification", "problem": "SINGLE_LABEL", "labels": ["a", "b", "c"]}
# Images of a second size are a batch of their own.
IMAGES = [
    torch.randn(1, side, side, generator=torch.Generator().manual_seed(side + number))
    for side in (16, 24)
    for number in range(2)
]


def save_peft(directory: Path, base: Path, seed: int, **settings: Any) -> AdapterHandle:
    """A random adapter of convolutions as PEFT saves it, which makes other vectors of images."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ["convolution"], **settings})
    with peft_warnings_allowed():
        model: Any = get_peft_model(AutoModel.from_pretrained(base), copy.deepcopy(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    return adapter_handle(directory, base)


def save_parameters(directory: Path, base: Path, part: str, seed: int, method: Method) -> AdapterHandle:
    """Random values in the place of the base's parameters with this part in their names, and a head."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    model: Any = AutoModel.from_pretrained(base)
    tensors = {
        name: parameter.detach() * (1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in model.named_parameters()
        if part in name
    }
    config = {"peft_type": "PARAMETERS", "method": str(method), "parameters": sorted(tensors), "head": HEAD}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    head = {"classifier.weight": torch.randn(3, 16, generator=generator), "classifier.bias": torch.ones(3)}
    named = {f"base_model.model.{name}": tensor for name, tensor in (tensors | head).items()}
    save_file(named, directory / "adapter_model.safetensors")
    return adapter_handle(directory, base)


def head_alone(directory: Path, base: Path) -> AdapterHandle:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "HEAD", "head": HEAD}))
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(99))
    named = {"base_model.model.classifier.weight": weight, "base_model.model.classifier.bias": torch.ones(3)}
    save_file(named, directory / "adapter_model.safetensors")
    return adapter_handle(directory, base)


@torch.inference_mode()
def oracle(base: Path, adapter: AdapterHandle | None, image: torch.Tensor) -> np.ndarray[Any, Any]:
    """What transformers, with PEFT or with the adapter's parameters, tells of one image alone."""
    model: Any = AutoModel.from_pretrained(base)
    tensors: dict[str, torch.Tensor] = {}
    if adapter is not None:
        found = load_file(Path(adapter.directory) / "adapter_model.safetensors")
        if any("lora_" in name for name in found):
            with peft_warnings_allowed():
                model = PeftModel.from_pretrained(model, adapter.directory)
        else:
            tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}
            model.load_state_dict(tensors, strict=False)
    vector = model.eval()(pixel_values=image[None]).pooler_output.flatten()
    if tensors:
        vector = tensors["classifier.weight"] @ vector + tensors["classifier.bias"]
    return vector.numpy()


def test_every_method_in_one_batch_equals_the_reference_alone(tmp_path: Path) -> None:
    base = make_vision_base(tmp_path / "base")
    adapters: list[AdapterHandle | None] = [
        None,
        head_alone(tmp_path / "head", base),
        save_peft(tmp_path / "lora", base, 1),
        save_peft(
            tmp_path / "rslora", base, 2, use_rslora=True, r=2, target_modules=["shortcut.convolution"]
        ),
        save_peft(
            tmp_path / "saved",
            base,
            3,
            target_modules=["shortcut.convolution"],
            modules_to_save=["layer.0.convolution"],
        ),
        save_peft(tmp_path / "dora", base, 6, use_dora=True),
        save_parameters(tmp_path / "full", base, "", 4, Method.FULL),
        save_parameters(tmp_path / "layers", base, "stages.1.", 5, Method.LAYERS),
    ]
    geometry = BaseGeometry.of_directory(base)
    facts = {a.digest: check_adapter(Path(a.directory), geometry, 64) for a in adapters if a}
    loop = EngineLoop(load_model(base), EngineConfig(str(base), max_running_sequences=64))
    for number, adapter in enumerate(adapters):
        for place, image in enumerate(IMAGES):
            pixels = Pixels(image.numpy().tobytes(), (1, *image.shape[1:]))
            encode = Encode(Pooling.MEAN)
            loop.deliver(
                Submit(number * 10 + place, (0,), adapter, Sampling(1), encode=encode, pixels=pixels)
            )
    found: dict[int, np.ndarray[Any, Any]] = {}
    while len(found) < len(adapters) * len(IMAGES):
        for event in loop.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Encoded):
                found[event.request_id] = np.frombuffer(event.data, "<f4")
            elif isinstance(event, Started):
                asked = adapters[event.request_id // 10]
                assert event.modules_changed == (facts[asked.digest].modules if asked else 0)
    loop.close()
    for number, adapter in enumerate(adapters):
        for place, image in enumerate(IMAGES):
            expected = oracle(base, adapter, image)
            np.testing.assert_allclose(found[number * 10 + place], expected, atol=3e-5, rtol=1e-4)


def test_pefts_files_of_convolutions_keep_their_digest_and_open_in_peft(tmp_path: Path) -> None:
    base = make_vision_base(tmp_path / "base")
    handle = save_peft(tmp_path / "lora", base, 1)
    facts = check_adapter(tmp_path / "lora", BaseGeometry.of_directory(base), 64)
    assert (facts.method, facts.task, facts.rank) == (Method.LORA, Task.FEATURE_EXTRACTION, 3)
    before = oracle(base, handle, IMAGES[0])
    spell_out_config(tmp_path / "lora")
    assert stored_digest(tmp_path / "lora") == handle.digest
    np.testing.assert_array_equal(oracle(base, handle, IMAGES[0]), before)


def test_what_this_base_cannot_be_changed_by_is_not_imported(tmp_path: Path) -> None:
    base = make_vision_base(tmp_path / "base")
    # PEFT trains the statistics of a BatchNorm that it saves; ours stay the base's.
    with pytest.raises(InvalidAdapterFiles, match="holds F32, I64"):
        save_peft(tmp_path / "statistics", base, 1, modules_to_save=["embedder.normalization"])
    grouped = make_vision_base(tmp_path / "regnet", "regnet")
    with pytest.raises(InvalidAdapterFiles, match="does not have or cannot adapt"):
        save_peft(tmp_path / "grouped", grouped, 1, target_modules=["shortcut.convolution"])
