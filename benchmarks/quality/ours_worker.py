"""Ours: a TrainJob as its process runs it (`training/run.py`), and the rows answered by the engine that serves.

Settings: none. Commands: {"initial": FILE, "order": ORDER} writes the parameters with which a run will begin;
{"order": ORDER} is answered with an OUTCOME (`order.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.files import WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.methods import MAX_RANK
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, Prepared, TaskLimits, TrainTask
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Value
from safetensors.torch import save_file

from benchmarks.peers.worker import Answer, Command, Settings, answer
from benchmarks.quality.alone import Mark, alone
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.ours_model import model_of
from benchmarks.quality.ours_predictions import predictions_of

MEMORY_BYTES = 64 * 2**30
"""No budget stands in the way."""


def start(_settings: Settings) -> Answer:
    def handle(command: Command) -> Mapping[str, Any]:
        order = Order(**command["order"])
        if "initial" in command:
            return alone(lambda _: _write_initial(order, Path(command["initial"])))
        return alone(lambda mark: _train(order, mark).as_json())

    return handle


def _write_initial(order: Order, file: Path) -> Mapping[str, Any]:
    parameters = model_of(_spec(order), Path(order.base), Path(order.train)).named_parameters()
    tensors = {name: parameter.detach().clone().contiguous() for name, parameter in parameters}
    save_file(tensors, file)
    return {"tensors": len(tensors)}


def _train(order: Order, mark: Mark) -> Outcome:
    spec, directory = _spec(order), Path(order.directory)
    clock = _Clock(mark)
    work = directory / "work"
    work.mkdir()
    task = TrainTask(
        job_name="tenants/quality/jobs/studied",
        attempt=1,
        spec=spec,
        base_directory=order.base,
        base_digest="",
        train_path=order.train,
        train_digest="",
        work_directory=str(work),
        output_directory=str(directory / "output"),
        limits=TaskLimits(
            threads=order.threads, memory_budget_bytes=MEMORY_BYTES, checkpoint_bytes=MEMORY_BYTES
        ),
    )
    if run(task, clock, threading.Event()) != EXIT_FINISHED:
        raise RuntimeError("the job was stopped")
    mark()
    output, base = directory / "output", Path(order.base)
    facts = check_adapter(output, BaseGeometry.of_directory(base), MAX_RANK)
    return Outcome(
        clock.losses,
        clock.seconds,
        facts.parameters,
        (output / WEIGHTS_FILE).stat().st_size,
        predictions_of(order, spec, output),
    )


def _spec(order: Order) -> TrainSpec:
    torch.set_num_threads(order.threads)
    return TrainSpec.model_validate(order.spec)


class _Clock:
    """Takes what a job reports: its losses, when it began to train, and when it ended."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark
        self._began = self._ended = 0.0
        self.losses: list[float] = []

    def __call__(self, report: Value) -> None:
        if isinstance(report, Prepared):
            self._mark()
        if not isinstance(report, Progress):
            return
        now = time.perf_counter()
        if report.phase == "encoding":
            self._began = now
        if report.phase == "training" and report.loss is not None:
            self._began = self._began or now - (report.step_seconds or 0.0)
            self._ended = now
            self.losses.append(report.loss)

    @property
    def seconds(self) -> float:
        return self._ended - self._began


if __name__ == "__main__":
    answer(start)
