"""A job that continues a version starts from exactly its weights, whatever the method: its first loss is the one that
the engine found for that version on the same rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts import PREFIX, parse_layout
from finetuned_service.jobs.continuing import Start, continued
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.methods import SETTINGS_OF, BaseFacts, stored_settings
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished, TrainTask
from finetuned_service.training.adapter import read_adapter
from finetuned_service.training.model import load_model
from finetuned_service.training.run import run
from safetensors.torch import load_file
from training_tasks import Reports, counting_rows, make_base, make_task

ROWS = counting_rows(10, 18)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "alpha": 6.0, "rank_pattern": {"v_proj": 2}, "rank_stabilized": True}},
    "dora": {"lora": {"rank": 4, "decomposed": True, "target_modules": ["q_proj", "layers.1.mlp.up_proj"]}},
    "saved": {"lora": {"rank": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}},
    "ia3": {"method": "IA3"},
    "ia3 saved": {"method": "IA3", "ia3": {"modules_to_save": ["lm_head", "o_proj"]}},
    "houlsby": {"method": "BOTTLENECK", "bottleneck": {"width": 5, "activation": "SILU", "scaling": 2.0}},
    "parallel": {"method": "BOTTLENECK", "bottleneck": {"placement": "PARALLEL", "reduction_factor": 8.0}},
    "chosen": {"method": "BOTTLENECK", "bottleneck": {"target_modules": ["layers.1"]}},
    "layers": {"method": "LAYERS", "layers": {"last": 1, "modules": ["layers.0.mlp.up_proj", "model.norm"]}},
    "embedding": {"method": "LAYERS", "layers": {"modules": ["embed_tokens"]}},
    "head": {"method": "HEAD"},
    "full": {"method": "FULL"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On one thread, and next to nothing of the general text, which is not what is asked here."""
    monkeypatch.setattr("finetuned_service.training.forgetting.MOST_TOKENS", 32)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def task_of(directory: Path, base: Path, steps: int, rate: float, **spec: Any) -> TrainTask:
    """All rows in every step, and held out as well."""
    return make_task(
        directory,
        base,
        train=ROWS,
        heldout=ROWS,
        evaluation={"evaluations": 0, "generation_rows": 0},
        optimization={
            "max_steps": steps,
            "batch_rows": len(ROWS),
            "learning_rate": rate,
            "schedule": "CONSTANT",
            "warmup_fraction": 0.0,
            "seed": steps,
        },
        **spec,
    )


def finish(task: TrainTask) -> tuple[float, dict[str, float]]:
    """The loss of the first step, and the figures that the engine found for what was made."""
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    first = next(told.loss for told in reports.of(Progress) if told.phase == "training")
    assert first is not None
    return first, {metric.name: metric.value for metric in finished.metrics}


@pytest.mark.parametrize("name", METHODS)
def test_the_first_loss_is_what_the_engine_found_for_the_version(
    tmp_path: Path, base: Path, name: str
) -> None:
    first = task_of(tmp_path / "first", base, 3, 1e-2, **METHODS[name])
    begun, served = finish(first)
    made = Path(first.output_directory)
    start = Start("v", made, first.base_digest, first.spec.method, first.spec.task)
    # Of what was trained with, only the method is said again.
    asked = task_of(tmp_path / "second", base, 2, 1e-3, method=first.spec.method)
    unset = asked.spec.model_dump(exclude=set(SETTINGS_OF.values()))
    taken = continued(TrainSpec.model_validate(unset), start, first.base_digest, base)
    spec = resolve_train(taken, base=BaseFacts.of_directory(base), train_rows=len(ROWS))
    second = asked.model_copy(update={"spec": spec, "start_directory": str(made)})
    continued_from, after = finish(second)
    assert served["loss"] < begun - 1e-3
    assert continued_from == pytest.approx(served["loss"], rel=1e-5)
    assert after["loss"] < served["loss"]
    kept = load_file(made / "adapter_model.safetensors")
    model = load_model(base, spec)
    read_adapter(made, model)
    assert all(torch.equal(parameter, kept[PREFIX + n]) for n, parameter in model.named_parameters())
    # Read back from what was made of it, the settings are those of the first job.
    found = [
        stored_settings(
            parse_layout((Path(task.output_directory) / "adapter_config.json").read_bytes()),
            BaseFacts.of_directory(base),
            BaseGeometry.of_files(base),
        ).settings
        for task in (first, second)
    ]
    assert found[0] == found[1]
