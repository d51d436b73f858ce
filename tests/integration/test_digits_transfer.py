"""The example's ResNet, pretrained on digits 0 to 4, carries over to 5 to 9, far better than chance."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

from finetuned_service.bases.convert import import_directory
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished
from finetuned_service.training.run import run
from training_tasks import Reports, make_task

# examples/ is no installed package: the script is loaded by its path.
_SPEC: Any = importlib.util.spec_from_file_location(
    "examples_digits", Path(__file__).resolve().parents[2] / "examples" / "digits.py"
)
digits: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(digits)


def test_transfer_to_digits_that_the_base_has_never_seen(tmp_path: Path) -> None:
    assert digits.pretrain(tmp_path / "source") > 0.97
    manifest = import_directory(tmp_path / "source", tmp_path / "digits")
    assert manifest.architecture == "ResNetModel"
    digits.write_rows(tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    train, heldout = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "eval.jsonl")
    )
    task = make_task(
        tmp_path / "job",
        tmp_path / "digits",
        train=train,
        heldout=heldout,
        task="image-classification",
        method="HEAD",
        optimization={"max_steps": 400, "batch_rows": 32, "learning_rate": 0.02},
    )
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    finished = reports.of(TrainFinished)[0]
    found, baseline = (
        {metric.name: metric.value for metric in metrics}
        for metrics in (finished.metrics, finished.baseline_metrics)
    )
    assert baseline["accuracy"] < 0.25
    assert found["accuracy"] > 0.9
    # With nothing set, in a tenth of the epochs.
    for method in ("LORA", "LAYERS", "FULL"):
        task = make_task(
            tmp_path / method,
            tmp_path / "digits",
            train=train,
            heldout=heldout,
            task="image-classification",
            method=method,
            optimization={},
        )
        reports = Reports()
        assert run(task, reports, threading.Event()) == EXIT_FINISHED
        [accuracy] = [m.value for m in reports.of(TrainFinished)[0].metrics if m.name == "accuracy"]
        assert accuracy > 0.93
