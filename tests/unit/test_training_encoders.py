"""Methods on a base that encodes, with a head over it: the gradient and the loss curve of transformers, with PEFT where
it has the method, then its outputs from the files, by the engine that serves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import check_adapter, spell_out_config, stored_digest
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.continuing import Start, continued
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.adapter import ENCODER_TASK_TYPE, adapter_handle, write_adapter
from finetuned_service.training.heads.adapted import AdaptedEncoder
from finetuned_service.training.heads.evaluate import answered
from finetuned_service.training.heads.examples import Example
from finetuned_service.vocabulary import Method, Pooling, Task
from on_device import DEVICE
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_bottlenecks import add_bottlenecks
from tiny_encoders import make_encoder_base
from tiny_models import peft_warnings_allowed
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

STEPS = 6
RATE = 2e-2
TARGETS = ["query", "value", "dense"]
IA3_TARGETS = {"target_modules": ["key", "query", "output.dense"], "feedforward_modules": ["output.dense"]}
LORA: dict[str, Any] = {"rank": 4, "alpha": 6.0, "target_modules": TARGETS}
PEFT_LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": TARGETS,
    "modules_to_save": ["classifier"],
}
SAVED = ["embeddings.LayerNorm", "layer.1.output.dense"]
LAYERS = {"last": 1, "modules": ["embeddings.LayerNorm", "layer.0.attention.self.value"]}
METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"lora": LORA}, LoraConfig(**PEFT_LORA)),
    "rslora": (
        {"lora": LORA | {"rank_stabilized": True}},
        LoraConfig(**PEFT_LORA, use_rslora=True),
    ),
    "dora": ({"lora": LORA | {"decomposed": True}}, LoraConfig(**PEFT_LORA, use_dora=True)),
    "saved": (
        {"lora": {"rank": 4, "alpha": 6.0, "target_modules": ["query", "value"], "modules_to_save": SAVED}},
        LoraConfig(
            r=4, lora_alpha=6, target_modules=["query", "value"], modules_to_save=[*SAVED, "classifier"]
        ),
    ),
    "ia3": ({"method": "IA3", "ia3": IA3_TARGETS}, IA3Config(**IA3_TARGETS, modules_to_save=["classifier"])),
    "ia3 saved": (
        {"method": "IA3", "ia3": IA3_TARGETS | {"modules_to_save": ["embeddings.LayerNorm", "value"]}},
        IA3Config(**IA3_TARGETS, modules_to_save=["embeddings.LayerNorm", "value", "classifier"]),
    ),
    "houlsby": ({"method": "BOTTLENECK"}, None),
    "pfeiffer": ({"method": "BOTTLENECK", "bottleneck": {"placement": "PFEIFFER", "width": 6}}, None),
    "full": ({"method": "FULL"}, None),
    "layers": ({"method": "LAYERS", "layers": LAYERS}, None),
}
TEXT = Task.TEXT_CLASSIFICATION
HEADS = {
    "one label": Head(task=TEXT, problem=Problem.SINGLE_LABEL, labels=("a", "b", "c"), pooling=Pooling.CLS),
    "several labels": Head(
        task=TEXT, problem=Problem.MULTI_LABEL, labels=("a", "b", "c"), pooling=Pooling.CLS
    ),
    "a number": Head(task=TEXT, problem=Problem.REGRESSION, pooling=Pooling.CLS),
    "tags": Head(task=Task.TOKEN_CLASSIFICATION, problem=Problem.SINGLE_LABEL, labels=("a", "b", "c")),
}
TOKENS = [(2, 7, 9, 3), (2, 5, 3), (2, 8, 8, 3), (2, *range(5, 20), 3)]


class FirstToken(nn.Module):
    """In the place of BERT's pooler, which bases are stored without."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]


def examples(head: Head) -> list[Example]:
    targets: dict[Problem, list[tuple[float, ...]]] = {
        Problem.SINGLE_LABEL: [(0,), (1,), (2,), (1,)],
        Problem.MULTI_LABEL: [(0, 1, 1), (1, 0, 0), (0, 0, 0), (1, 1, 1)],
        Problem.REGRESSION: [(0.5,), (-1.0,), (2.0,), (0.0,)],
    }
    if head.task is Task.TOKEN_CLASSIFICATION:
        places = [(1, 2), (1,), (1, 2), (1, 4, 9)]
        return [
            Example(number, tokens, tuple(float(place % 3) for place in at), at)
            for number, (tokens, at) in enumerate(zip(TOKENS, places, strict=True))
        ]
    rows = zip(TOKENS, targets[head.problem], strict=True)
    return [Example(number, tokens, target) for number, (tokens, target) in enumerate(rows)]


def reference(base: Path, head: Head, config: Any, ours: AdaptedEncoder) -> Any:
    """transformers' own model, with PEFT on it where there is a configuration, beginning where ours does."""
    tags = head.task is Task.TOKEN_CLASSIFICATION
    kind = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    plain: Any = kind.from_pretrained(base, num_labels=head.outputs, attn_implementation="eager")
    if not tags:
        plain.bert.pooler = FirstToken()
    begun = dict(ours.named_parameters())
    if config is None:
        for name, parameter in plain.eval().named_parameters():
            parameter.requires_grad_(name.removeprefix("bert.") in begun)
        add_bottlenecks(plain, begun, "bert.")
        nn.init.zeros_(plain.classifier.weight)
        return plain
    with peft_warnings_allowed():
        model: Any = get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier.modules_to_save" in name:
                parameter.zero_()
            elif "lora_A" in name:
                own = name.removeprefix("base_model.model.bert.").replace(".default", "")
                parameter.copy_(begun[own])
    return model


def reference_loss(model: Any, rows: list[Example], head: Head) -> Tensor:
    """The mean loss as transformers' heads compute it, each row alone."""
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0]
        logits = logits[list(row.places)] if row.places else logits[None]
        target = torch.tensor([row.targets], dtype=torch.float32)
        if head.problem is Problem.SINGLE_LABEL:
            total = total + functional.cross_entropy(logits, target[0].long(), reduction="sum")
        elif head.problem is Problem.MULTI_LABEL:
            total = total + functional.binary_cross_entropy_with_logits(logits, target)
        else:
            total = total + functional.mse_loss(logits, target)
        count += row.supervised_tokens
    return total / count


def curve(parameters: list[nn.Parameter], loss_of_all: Any, rate: float = RATE) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = loss_of_all()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("lora", "one label"),
        ("lora", "tags"),
        ("dora", "several labels"),
        ("saved", "one label"),
        ("saved", "tags"),
        ("rslora", "several labels"),
        ("ia3", "a number"),
        ("ia3", "several labels"),
        ("houlsby", "one label"),
        ("houlsby", "tags"),
        ("houlsby", "several labels"),
        ("pfeiffer", "a number"),
        ("full", "several labels"),
        ("full", "tags"),
        ("layers", "one label"),
        ("layers", "a number"),
        ("layers", "several labels"),
    ],
)
def test_the_loss_curve_and_the_outputs_are_those_of_the_reference(
    base: Path, tmp_path: Path, method: str, kind: str
) -> None:
    settings, config = METHODS[method]
    head = HEADS[kind]
    facts = BaseFacts.of_directory(base)
    spec = resolve_method(
        TrainSpec.model_validate({"dataset": "", "adapter": "", "task": head.task, **settings}), facts
    )
    ours = AdaptedEncoder.load(base, spec, head)
    theirs = reference(base, head, config, ours)
    rows = examples(head)
    scale = 1 / sum(row.supervised_tokens for row in rows)
    # In two parts: accumulation equals the whole batch.
    parts = [rows[:1], rows[1:]]
    # Whole parameters move more at one rate.
    rate = RATE / 10 if method in {"full", "layers", "saved"} else RATE
    found = curve(
        [parameter for _, parameter in ours.named_parameters()],
        lambda: torch.stack([ours.loss_of(part, scale) for part in parts]).sum(),
        rate,
    )
    expected = curve(
        [parameter for parameter in theirs.parameters() if parameter.requires_grad],
        lambda: reference_loss(theirs, rows, head),
        rate,
    )
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)

    write_adapter(tmp_path, ours.installed, "bases/tiny", torch.float32, task_type=ENCODER_TASK_TYPE)
    assert check_adapter(tmp_path, BaseGeometry.of_directory(base), 64).head == head
    outputs = answered(base, adapter_handle(tmp_path, base), rows, head, 1)
    with torch.no_grad():
        for row, output in zip(rows, outputs, strict=True):
            logits = theirs(input_ids=torch.tensor([row.token_ids])).logits[0]
            logits = logits[list(row.places)] if row.places else logits[None]
            np.testing.assert_allclose(output, logits.numpy(), rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "saved", "changed"),
    [
        ("saved", ["embeddings.LayerNorm", "encoder.layer.1.output.dense"], 4),
        (
            "ia3 saved",
            ["embeddings.LayerNorm", *(f"encoder.layer.{n}.attention.self.value" for n in (0, 1))],
            8,
        ),
    ],
)
def test_modules_saved_beside_a_head_are_stored_for_peft_and_count_for_the_digest(
    base: Path, tmp_path: Path, name: str, saved: list[str], changed: int
) -> None:
    head, (settings, _) = HEADS["one label"], METHODS[name]
    spec = resolve_method(
        TrainSpec.model_validate({"dataset": "", "adapter": "", "task": head.task, **settings}),
        BaseFacts.of_directory(base),
    )
    ours = AdaptedEncoder.load(base, spec, head)
    write_adapter(tmp_path, ours.installed, "bases/tiny", torch.float32, task_type=ENCODER_TASK_TYPE)
    digest = stored_digest(tmp_path)
    spell_out_config(tmp_path)
    assert stored_digest(tmp_path) == digest
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == [*saved, "classifier"]
    facts = check_adapter(tmp_path, BaseGeometry.of_directory(base), 64)
    assert (facts.head, facts.modules) == (head, changed + len(saved) + 1)
    start = Start("tenants/t/adapters/a/versions/1", tmp_path, "sha256:0", spec.method, TEXT)
    wanted = {"dataset": "", "adapter": "", "task": TEXT, "method": spec.method}
    found = continued(TrainSpec.model_validate(wanted), start, "sha256:0", base)
    settings_found = found.ia3 if spec.method is Method.IA3 else found.lora
    assert settings_found.modules_to_save == tuple(saved)


@pytest.mark.parametrize("method", ["full", "layers"])
def test_the_gradient_of_whole_parameters_is_that_of_transformers(base: Path, method: str) -> None:
    settings, _ = METHODS[method]
    head = HEADS["one label"]
    spec = resolve_method(
        TrainSpec.model_validate({"dataset": "", "adapter": "", "task": head.task, **settings}),
        BaseFacts.of_directory(base),
    )
    ours = AdaptedEncoder.load(base, spec, head)
    theirs = reference(base, head, None, ours)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # At zero a head has no gradient to give to what is under it.
        ours.head.weight.copy_(torch.randn(ours.head.weight.shape, generator=generator))
        theirs.classifier.weight.copy_(ours.head.weight)
    rows = examples(head)
    ours.loss_of(rows, 1 / len(rows)).backward()
    reference_loss(theirs, rows, head).backward()
    wanted = {
        name.removeprefix("bert."): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    found = {name: parameter.grad.cpu() for name, parameter in ours.named_parameters()}
    assert found.keys() == wanted.keys()
    # A GPU adds in another order than the reference on the CPU.
    atol = 1e-6 if DEVICE == "cpu" else 1e-5
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=atol)


def bottlenecks(base: Path, **settings: Any) -> Any:
    wanted = {"dataset": "", "adapter": "", "task": TEXT, "method": "BOTTLENECK", "bottleneck": settings}
    return resolve_train(TrainSpec.model_validate(wanted), base=BaseFacts.of_directory(base), train_rows=10)


def test_bottlenecks_stand_at_what_is_added_to_the_stream_or_at_layers(base: Path) -> None:
    layer = "encoder.layer.0"
    houlsby = bottlenecks(base).bottleneck.target_modules
    assert houlsby[:2] == (f"{layer}.attention.output.dense", f"{layer}.output.dense")
    assert len(houlsby) == 4
    pfeiffer = bottlenecks(base, placement="PFEIFFER").bottleneck.target_modules
    assert pfeiffer == (layer, "encoder.layer.1")
    assert bottlenecks(base, placement="PARALLEL", target_modules=["layer.1"]).bottleneck.target_modules == (
        "encoder.layer.1",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "PARALLEL"}, "is PARALLEL, and this base has no module for it.*HOULSBY or PFEIFFER"),
        (
            {"placement": "PARALLEL", "target_modules": ["output.dense"]},
            r"PARALLEL cannot read the input.*name layers \(layer.0\)",
        ),
        (
            {"target_modules": ["mlp"]},
            r"allowed are the base's layers \(layer.0\) and their parts: attention.output.dense, output.dense",
        ),
    ],
)
def test_bottlenecks_where_none_can_stand_are_refused(
    base: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidField, match=message):
        bottlenecks(base, **settings)
