"""GPT-2: the engine's and the trainer's numbers beside transformers' and PEFT's own, float32."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.bases.manifest import compute_digest, describe_base, write_manifest
from finetuned_service.engine.choose import load_model as choose_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit, Tokens
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import InvalidField, StartRefused
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished, TrainTask
from finetuned_service.names import BaseName
from finetuned_service.text.supervision import EncodedRow, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import PromptCompletion
from finetuned_service.training.methods.lora import LoraLinear
from finetuned_service.training.model import load_model
from finetuned_service.training.run import run
from finetuned_service.vocabulary import WeightFormat
from peft import LoraConfig, get_peft_model
from tiny_gpt2 import ALL_LINEAR, load_gpt2_peft, load_plain_gpt2, save_gpt2_adapter, save_tiny_gpt2
from tiny_models import oracle_logits, oracle_tokens, peft_warnings_allowed, random_prompt
from tiny_tokenizers import write_tokenizer
from training_tasks import Reports, StopAfter, counting_rows, make_task
from unit.test_training_model import plain_loss, rows, spec

CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=8,
    max_prefill_tokens=16,
    kv_capacity_tokens=2048,
    device_budget_bytes=4 * 1024 * 1024,
    host_budget_bytes=16 * 1024 * 1024,
)
LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 6.0, "target_modules": ALL_LINEAR}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gpt2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> EngineModel:
    return EngineModel.load(base)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """None is the plain base."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        None,
        save_gpt2_adapter(root / "lora", base, seed=1),
        save_gpt2_adapter(root / "wide", base, seed=2, rank=9),
        save_gpt2_adapter(root / "dora", base, seed=3, use_dora=True),
    ]


@pytest.fixture(scope="module")
def oracles(base: Path, adapters: list[Any]) -> list[Any]:
    return [
        load_plain_gpt2(base) if adapter is None else load_gpt2_peft(base, adapter.directory)
        for adapter in adapters
    ]


@pytest.mark.parametrize("index", range(4), ids=["base", "lora", "wide", "dora"])
def test_logits_equal_transformers_and_pefts(model, adapters, oracles, index):
    prompt = random_prompt(1, 40)
    handle = adapters[index].handle if adapters[index] else None
    with OfflineEngine(model, CONFIG) as engine:
        actual = engine.logits(prompt, handle)
    torch.testing.assert_close(oracle_logits(oracles[index], prompt), actual, atol=2e-4, rtol=2e-4)
    if index:
        plain = oracle_logits(oracles[0], prompt)
        assert (oracle_logits(oracles[index], prompt) - plain).abs().max() > 0.05


def test_a_mixed_batch_says_what_each_says_alone(model, adapters, oracles):
    """Prompts longer than a prefill chunk, so that learned positions go on from one chunk to the next."""
    prompts = [random_prompt(seed, 9 + 7 * seed) for seed in range(4)]
    with OfflineEngine(model, CONFIG) as engine:
        for index, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            handle = adapter.handle if adapter else None
            engine.deliver(Submit(index, prompt, handle, Sampling(max_new_tokens=12, ignore_eos=True)))
        found: dict[int, list[int]] = {index: [] for index in range(4)}
        while any(len(tokens) < 12 for tokens in found.values()):
            for event in engine.step():
                if isinstance(event, Tokens):
                    found[event.request_id].extend(event.token_ids)
    expected = [oracle_tokens(oracle, prompt, 12) for oracle, prompt in zip(oracles, prompts, strict=True)]
    assert list(found.values()) == expected


def test_the_base_in_memory_has_the_digest_of_its_file(model, base):
    write_tokenizer(base)
    manifest = describe_base(
        base, name=BaseName.parse("bases/gpt"), weight_format=WeightFormat.FP32, source="random"
    )
    assert model.fingerprint() == manifest.digest == compute_digest(base)
    assert (manifest.architecture, manifest.context_tokens) == ("GPT2LMHeadModel", 256)
    assert linear_shapes(base / "model.safetensors")["transformer.h.0.mlp.c_fc"] == (192, 48)


def test_the_native_path_names_why_it_does_not_compute_it(base):
    with pytest.raises(StartRefused, match="its architecture is gpt2; choose compute 'auto' or 'plain'"):
        choose_model(base, compute="native")
    assert isinstance(choose_model(base), EngineModel)


def test_loss_and_gradients_equal_pefts(base):
    ours = load_model(base, spec(3, **LORA))
    with peft_warnings_allowed():
        config = LoraConfig(r=4, lora_alpha=6, target_modules=list(ALL_LINEAR), fan_in_fan_out=True)
        peft = get_peft_model(load_plain_gpt2(base), config).eval()
    twins = {name.replace(".default", ""): value for name, value in peft.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
            twins[f"base_model.model.{name}"].copy_(parameter)
    expected = plain_loss(peft, rows())
    expected.backward()
    ours.loss_of(rows(), 1 / sum(row.supervised_tokens for row in rows())).backward()
    assert len(dict(ours.named_parameters())) == 2 * 4 * 2
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad.cpu(), twins[f"base_model.model.{name}"].grad, rtol=1e-3, atol=1e-5
        )


def test_checkpointed_layers_have_the_same_gradient(base):
    gradients = []
    for checkpointing in (False, True):
        ours = load_model(base, spec(3, **LORA))
        if checkpointing:
            ours.checkpoint_activations()
        ours.loss_of(rows(), 1.0).backward()
        gradients.append([parameter.grad for _, parameter in ours.named_parameters()])
        assert any(isinstance(module, LoraLinear) for module in ours.decoder.modules())
    assert all(map(torch.equal, *gradients))


def stored(directory: Path, *, template: str | None) -> Path:
    """A base of the store; without a template, as GPT-2 is."""
    write_tokenizer(directory, template=template, eos_token="<|im_end|>")
    save_tiny_gpt2(directory, vocab_size=BaseTokenizer.load(directory).vocabulary_size)
    manifest = describe_base(
        directory, name=BaseName.parse("bases/tiny"), weight_format=WeightFormat.FP32, source="random"
    )
    write_manifest(directory, manifest)
    return directory


def completions(first: int, last: int) -> list[dict[str, str]]:
    return [{**row, "completion": f" {row['completion']}"} for row in counting_rows(first, last)]


def finish(task: TrainTask) -> TrainFinished:
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    return finished


def test_a_whole_job_without_a_template_is_served_as_peft_serves_it(tmp_path):
    base = stored(tmp_path / "base", template=None)
    settings: dict[str, Any] = {
        "train": completions(0, 10),
        "heldout": completions(0, 10),
        "lora": {"rank": 8},
        "optimization": {"max_steps": 60, "batch_rows": 10, "learning_rate": 2e-2},
    }
    task = make_task(tmp_path / "job", base, **settings)
    finished = finish(task)
    figures = {metric.name: metric.value for metric in finished.metrics}
    assert figures["exact_match"] == 1.0
    assert [sample.answer for sample in finished.samples] == [r["completion"] for r in completions(0, 10)]
    output = Path(task.output_directory)
    assert json.loads((output / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    peft, tokenizer, losses = load_gpt2_peft(base, output), BaseTokenizer.load(base), []
    for row in completions(0, 10):
        encoded: EncodedRow = encode_row(tokenizer, PromptCompletion(**row))
        with torch.no_grad():
            losses.append((plain_loss(peft, [encoded]).item(), encoded.supervised_tokens))
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert figures["loss"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    stopped = make_task(tmp_path / "stopped", base, **settings)
    stop = StopAfter(7)
    assert run(stopped, stop, stop) == EXIT_STOPPED
    assert finish(stopped) == finished


def test_a_baseline_that_no_template_can_write_is_refused(tmp_path):
    base = stored(tmp_path / "base", template=None)
    task = make_task(
        tmp_path / "job", base, train=completions(0, 4), evaluation={"baseline": {"instruction": "Spell."}}
    )
    with pytest.raises(InvalidField, match=r"spec.evaluation.baseline: is set, and the base has no chat"):
        run(task, Reports(), threading.Event())
