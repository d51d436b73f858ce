"""Preference training of GPT-2, which has no chat template and whose linear weights are turned in memory: beside DPO by
its definition on PEFT and on plain transformers, whole jobs too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.bases.convert import import_directory
from finetuned_service.jobs.events import EvaluationFinished
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import DpoSettings, TrainSpec
from finetuned_service.text.supervision import encode_preference
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import ChatMessage, Preference
from finetuned_service.training.model import load_model
from finetuned_service.training.preferences.model import PreferenceModel, ReferencedPair
from peft import LoraConfig, get_peft_model
from reference_loops import RATE, STEPS
from safetensors.torch import load_file
from tiny_gpt2 import ALL_LINEAR, load_gpt2_peft, load_plain_gpt2, save_tiny_gpt2
from tiny_models import peft_warnings_allowed
from tiny_tokenizers import byte_level, write_tokenizer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from unit.test_training_preferences import (
    PAIRS,
    answer_log_probability,
    dpo_by_definition,
    finish,
    preferences,
    task_of,
)

SETTINGS = DpoSettings(beta=0.3, label_smoothing=0.1)
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"lora": {"rank": 4, "alpha": 8.0, "decomposed": True, "target_modules": list(ALL_LINEAR)}},
    "full": {"method": "FULL"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    source = directory / "source"
    save_tiny_gpt2(source, vocab_size=byte_level().get_vocab_size(), n_positions=256)
    import_directory(write_tokenizer(source, template=None), directory / "tiny")
    return directory / "tiny"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More only wait for each other where the work is so small and the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peft_dora(base: Path, begun: dict[str, nn.Parameter]) -> Any:
    """PEFT's, with the A that ours begins with; its B is zero, its magnitudes are the lengths of the base's rows."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_dora=True,
        target_modules=list(ALL_LINEAR),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    with peft_warnings_allowed():
        model = get_peft_model(load_plain_gpt2(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(begun[name.removeprefix("base_model.model.").replace(".default", "")])
    return model


def curve(parameters: list[nn.Parameter], loss_of_all: Callable[[], Tensor], rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of_all()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_curve_is_that_of_the_definition(base: Path, name: str) -> None:
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", **METHODS[name]})
    ours = load_model(base, resolve_method(wanted, BaseFacts.of_directory(base)))
    begun = dict(ours.named_parameters())
    reference = load_plain_gpt2(base)
    theirs = peft_dora(base, begun) if name == "dora" else copy.deepcopy(reference)
    with torch.no_grad():
        before = [
            tuple(answer_log_probability(reference, row).item() for row in (pair.chosen, pair.rejected))
            for pair in PAIRS
        ]
    rows = [ReferencedPair(*each) for each in zip(PAIRS, before, strict=True)]
    learner = PreferenceModel(ours, SETTINGS)
    learner.train(mode=True)
    # Whole parameters move more at one rate.
    rate = RATE / 10 if name == "full" else RATE
    found = curve(list(begun.values()), lambda: learner.loss_of(rows, 1 / len(rows)), rate)
    expected = curve(
        [parameter for parameter in theirs.parameters() if parameter.requires_grad],
        lambda: dpo_by_definition(theirs, reference, PAIRS, SETTINGS),
        rate,
    )
    assert found[0] == pytest.approx(math.log(2))
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=2e-4)


def tuned(base: Path, directory: Path, name: str) -> Any:
    """transformers with what a job has stored."""
    if name == "dora":
        return load_gpt2_peft(base, directory)
    plain = load_plain_gpt2(base)
    turned = {f"{n}.weight" for n, module in plain.named_modules() if isinstance(module, Conv1D)}
    own = {
        n.removeprefix("base_model.model."): tensor
        for n, tensor in load_file(directory / "adapter_model.safetensors").items()
    }
    own = {n: tensor.T if n in turned else tensor for n, tensor in own.items()}
    assert not plain.load_state_dict(own, strict=False).unexpected_keys
    return plain


@pytest.mark.parametrize("name", METHODS)
def test_a_job_prefers_what_was_chosen_and_its_figures_are_those_of_the_reference(
    base: Path, tmp_path: Path, name: str
) -> None:
    settings = {"max_steps": 12, "batch_rows": 4, "learning_rate": 1e-3 if name == "full" else 1e-2}
    task = task_of(tmp_path, base, optimization=settings, dpo={"beta": 0.2}, **METHODS[name])
    reports, finished = finish(task)
    after = {metric.name: metric.value for metric in finished.metrics}
    assert after["loss"] < math.log(2) - 0.05
    assert after["reward_accuracy"] == 1.0
    # The training process and the engine measure the same.
    trained, served = [e for e in reports.of(EvaluationFinished) if e.subject == "adapter"][-2:]
    assert (trained.step, served.step) == (12, 12)
    for own, other in zip(trained.metrics, served.metrics[:-1], strict=True):
        assert own.value == pytest.approx(other.value, abs=1e-3)

    policy, reference = tuned(base, Path(task.output_directory), name), load_plain_gpt2(base)
    tokenizer, margins = BaseTokenizer.load(base), []
    for row in preferences(24, 32):
        asked = Preference((ChatMessage("user", row["prompt"]),), row["chosen"], row["rejected"])
        with torch.no_grad():
            chosen, rejected = (
                (answer_log_probability(policy, answer) - answer_log_probability(reference, answer)).item()
                for answer in encode_preference(tokenizer, asked)
            )
        margins.append(0.2 * (chosen - rejected))
    assert after["reward_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3)
