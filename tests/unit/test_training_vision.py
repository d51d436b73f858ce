"""Methods on vision models under a head: gradient and loss curve of PEFT, or of transformers with those parameters
trained, and their outputs from the files, by the engine that serves. BatchNorm keeps its statistics.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.adapters.site_ops import AddLowRank, ScaleRows
from finetuned_service.bases.inputs import ImageInput
from finetuned_service.engine.adapter_weights import load_op
from finetuned_service.engine.module_change import RowChange
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.continuing import Start, continued
from finetuned_service.jobs.methods import BaseFacts, refuse_method, resolve_method
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.adapter import adapter_handle, write_adapter
from finetuned_service.training.heads.adapted import AdaptedEncoder
from finetuned_service.training.heads.evaluate import answered
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.heads.images import HeldImage, ImageShelf
from finetuned_service.training.methods.convolution import LoraConvolution
from finetuned_service.vocabulary import Method, Task
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_encoders import make_vision_base, random_image
from tiny_models import peft_warnings_allowed
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

STEPS = 5
TASK = Task.IMAGE_CLASSIFICATION
HEAD = Head(task=TASK, problem=Problem.SINGLE_LABEL, labels=("a", "b", "c"))
LORA: dict[str, Any] = {"rank": 3, "alpha": 6.0, "rank_pattern": {"shortcut.convolution": 2}}
PEFT_LORA: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 6,
    "rank_pattern": {"shortcut.convolution": 2},
    "target_modules": ["convolution"],
}
LAYERS = {"last": 1, "modules": ["embedder.embedder.normalization", "stages.0.layers.0.layer.1.convolution"]}
SAVED: dict[str, Any] = {
    "target_modules": ["layer.1.convolution"],
    "modules_to_save": ["embedder.embedder.convolution"],
}
METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"method": "LORA", "lora": LORA}, LoraConfig(**PEFT_LORA)),
    "rslora": (
        {
            "method": "LORA",
            "lora": {"rank": 4, "rank_stabilized": True, "target_modules": ["layer.1.convolution"]},
        },
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["layer.1.convolution"]),
    ),
    "dora": ({"method": "LORA", "lora": LORA | {"decomposed": True}}, LoraConfig(**PEFT_LORA, use_dora=True)),
    "saved": (
        {"method": "LORA", "lora": {"rank": 3, **SAVED}},
        LoraConfig(r=3, lora_alpha=6, **SAVED),
    ),
    "full": ({"method": "FULL"}, None),
    "layers": ({"method": "LAYERS", "layers": LAYERS}, None),
}


def held(count: int = 6) -> list[HeldImage]:
    form = ImageInput(channels=1, height=16, width=16, mean=(0.5,), std=(0.25,))
    return [ImageShelf(form, 0).take(random_image(seed)) for seed in range(count)]


def images(count: int = 6) -> Tensor:
    found = [image.pixels() for image in held(count)]
    return torch.stack(
        [torch.frombuffer(bytearray(p.data), dtype=torch.float32).view(p.shape) for p in found]
    )


def examples() -> list[Example]:
    return [Example(number, (0,), (float(number % 3),), image=image) for number, image in enumerate(held())]


def resolved(base: Path, **settings: Any) -> TrainSpec:
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", "task": TASK, **settings})
    return resolve_method(wanted, BaseFacts.of_directory(base))


class Reference(nn.Module):
    """transformers' own model, with PEFT on it where there is a configuration, and a head."""

    def __init__(self, base: Path, config: Any, ours: AdaptedEncoder) -> None:
        super().__init__()
        begun = dict(ours.named_parameters())
        plain: Any = AutoModel.from_pretrained(base).eval().requires_grad_(requires_grad=False)
        self.names: dict[str, nn.Parameter] = {}
        if config is not None:
            with peft_warnings_allowed():
                plain = get_peft_model(plain, config).eval()
        for name, parameter in plain.named_parameters():
            own = name.removeprefix("base_model.model.").replace(".default", "")
            own = own.replace(".modules_to_save", "").replace("magnitude_vector.weight", "magnitude_vector")
            if own in begun:
                self.names[own] = parameter.requires_grad_()
                parameter.data.copy_(begun[own])
        self.model = plain
        self.classifier = nn.Linear(16, 3)
        for part in ("weight", "bias"):
            own_part = getattr(self.classifier, part)
            own_part.data.copy_(begun[f"classifier.{part}"])
            self.names[f"classifier.{part}"] = own_part
        assert self.names.keys() == begun.keys()

    def forward(self, batch: Tensor) -> Tensor:
        return self.classifier(self.model(pixel_values=batch).pooler_output.flatten(1))

    def loss(self) -> Tensor:
        return functional.cross_entropy(self(images()), torch.arange(6) % 3)


def curve(parameters: list[nn.Parameter], loss_of_all: Any) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of_all()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_base(tmp_path_factory.mktemp("bases") / "tiny")


def pair(base: Path, settings: dict[str, Any], config: Any) -> tuple[AdaptedEncoder, Reference]:
    """Ours and the reference, beginning alike, with something in the head and in B to give a gradient on."""
    ours = AdaptedEncoder.load(base, resolved(base, **settings), HEAD)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name or name.startswith("classifier"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ours, Reference(base, config, ours)


def check(base: Path, directory: Path, settings: dict[str, Any], config: Any) -> Reference:
    """Compare training and serving with the reference, which is returned as trained."""
    ours, theirs = pair(base, settings, config)
    rows = examples()
    parts = [rows[:2], rows[2:]]

    def loss() -> Tensor:
        return torch.stack([ours.loss_of(part, 1 / len(rows)) for part in parts]).sum()

    loss().backward()
    theirs.loss().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), theirs.names[name].grad, rtol=1e-4, atol=1e-6)
    found = curve([parameter for _, parameter in ours.named_parameters()], loss)
    expected = curve(list(theirs.names.values()), theirs.loss)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)

    write_adapter(directory, ours.installed, "bases/tiny", torch.float32, task_type=None)
    facts = check_adapter(directory, BaseGeometry.of_directory(base), 64)
    assert (facts.head, facts.task) == (HEAD, TASK)
    assert facts.parameters == sum(parameter.numel() for _, parameter in ours.named_parameters())
    outputs = answered(base, adapter_handle(directory, base), rows, HEAD, 1)
    with torch.no_grad():
        wanted = theirs(images()).numpy()
    np.testing.assert_allclose(np.concatenate(outputs), wanted, rtol=2e-3, atol=2e-4)
    return theirs


@pytest.mark.parametrize("name", METHODS)
def test_training_and_serving_are_those_of_the_reference(base: Path, tmp_path: Path, name: str) -> None:
    theirs = check(base, tmp_path, *METHODS[name])
    plain: Any = AutoModel.from_pretrained(base)
    buffers = dict(theirs.model.named_buffers())
    for own, buffer in plain.named_buffers():
        kept = buffers.get(own, buffers.get(f"base_model.model.{own}"))
        assert kept is not None
        assert torch.equal(kept, buffer)


@pytest.mark.parametrize("model_type", ["regnet", "convnextv2"])
def test_other_vision_models_train_whole(tmp_path: Path, model_type: str) -> None:
    base = make_vision_base(tmp_path / "base", model_type)
    (tmp_path / "adapter").mkdir()
    check(base, tmp_path / "adapter", {"method": "FULL"}, None)


def test_what_is_written_opens_in_peft(base: Path, tmp_path: Path) -> None:
    ours, theirs = pair(base, *METHODS["lora"])
    write_adapter(tmp_path, ours.installed, "bases/tiny", torch.float32, task_type=None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "head"})
    )
    with peft_warnings_allowed():
        reread: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path)).eval()
    with torch.no_grad():
        found = reread(pixel_values=images()).pooler_output
        expected = theirs.model(pixel_values=images()).pooler_output
    torch.testing.assert_close(found, expected)


def test_dora_leaves_the_bias_of_a_convolution_as_it_is() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 5, 3, stride=2, padding=1).requires_grad_(requires_grad=False)
    inputs, scaling = torch.randn(3, 2, 9, 9), 2.0
    ours = LoraConvolution(convolution, rank=2, scaling=scaling, decomposed=True)
    assert ours.magnitude is not None
    torch.testing.assert_close(ours(inputs), convolution(inputs))
    with torch.no_grad():
        for parameter in (ours.lora_b, ours.magnitude):
            parameter.normal_()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"], use_dora=True)
    with peft_warnings_allowed():
        theirs: Any = get_peft_model(nn.Sequential(copy.deepcopy(convolution)), config).eval()
    own = {"lora_A": ours.lora_a, "lora_B": ours.lora_b, "lora_magnitude": ours.magnitude}
    named = {part: p for part in own for name, p in theirs.named_parameters() if part in name}
    with torch.no_grad():
        for part, parameter in named.items():
            parameter.copy_(own[part])
    found, expected = ours(inputs), theirs(inputs)
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    expected.square().mean().backward()
    for part, parameter in named.items():
        torch.testing.assert_close(own[part].grad, parameter.grad)
    a, b, magnitude = (own[part].detach() for part in own)
    add = AddLowRank(a, b, scaling)
    served = convolution(inputs)
    plain = served.clone()
    ops = (add, load_op(ScaleRows(magnitude), add, convolution.weight))
    RowChange([(slice(0, 2), ops)])(convolution, inputs, served)
    torch.testing.assert_close(served[:2], expected[:2].detach())
    torch.testing.assert_close(served[2:], plain[2:], rtol=0, atol=0)


def test_what_is_continued_keeps_its_convolutions(base: Path, tmp_path: Path) -> None:
    ours = AdaptedEncoder.load(
        base, resolved(base, lora={"rank": 2, "target_modules": ["layer.1.convolution"]}), HEAD
    )
    write_adapter(tmp_path, ours.installed, "bases/tiny", torch.float32, task_type=None)
    start = Start("tenants/t/adapters/a/versions/1", tmp_path, "sha256:0", Method.LORA, TASK)
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", "task": TASK})
    found = continued(wanted, start, "sha256:0", base).lora
    assert found.rank == 2
    assert found.target_modules == tuple(
        f"encoder.stages.{stage}.layers.0.layer.1.convolution" for stage in (0, 1)
    )


def test_layers_are_the_stages(base: Path) -> None:
    facts = BaseFacts.of_directory(base)
    assert facts.layers == ("encoder.stages.0", "encoder.stages.1")
    assert resolved(base, method="LAYERS").layers.layers == (1,)
    assert resolved(base, method="LORA").lora.target_modules == ("convolution",)


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "resnet",
            {"lora": {"target_modules": ["layer.1.convolution"], "modules_to_save": ["pooler"]}},
            "names 'pooler'; the base's modules with parameters are convolution, normalization",
        ),
        (
            "resnet",
            {"lora": {"modules_to_save": ["shortcut.convolution"]}},
            "names modules that are targets, too",
        ),
        ("resnet", {"lora": {"target_modules": ["query"]}}, "the base's convolutions are convolution"),
        ("resnet", {"method": "LAYERS", "layers": {"last": 3}}, "is 3; the base has 2 layers: 1 to 2"),
        ("regnet", {}, "grouped.*Allowed: METHOD_HEAD, METHOD_LAYERS, METHOD_FULL"),
        ("convnext", {"method": "FULL"}, "layer_scale_parameter.*Allowed: METHOD_HEAD$"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, model_type: str, settings: dict[str, Any], message: str
) -> None:
    base = make_vision_base(tmp_path / "base", model_type)
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", "task": TASK, **settings})
    with pytest.raises(InvalidField, match=message):
        resolve_train(wanted, base=BaseFacts.of_directory(base), train_rows=10)
    assert refuse_method(resolved(base, method="HEAD"), BaseFacts.of_directory(base)) == []
