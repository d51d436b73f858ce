"""Ours: `Trainer`, the loop of a TrainJob, in the environment of a job process.

Settings: `base`, `threads`, `batch_rows`, `learning_rate`. Commands: {"rows": FILE} trains one epoch of it with
fresh moments, and answers {"seconds", "tokens", "steps"}: from the first step's begin to the last one's end.
{"weights": true} answers {"mapped_bytes", "private_bytes"}: what the base's weights take in this process now.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
from finetuned_service.bases.manifest import WEIGHTS_FILE
from finetuned_service.jobs.events import Environment, Progress
from finetuned_service.jobs.specs import EvaluationOptions, LoraSettings, Optimization, TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training.checkpoint import CheckpointStore, RunState
from finetuned_service.training.loop import Trainer
from finetuned_service.training.model import load_model
from finetuned_service.training.schedule import Plan
from finetuned_service.vocabulary import Value

from benchmarks.peers.worker import Answer, Command, Settings, answer
from benchmarks.training.weights import frozen_tensors, weight_bytes

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def start(settings: Settings) -> Answer:
    torch.set_num_threads(settings["threads"])
    lora = LoraSettings(rank=16, alpha=32.0, target_modules=MODULES)
    spec = TrainSpec(dataset="", adapter="", lora=lora)
    model = load_model(Path(settings["base"]), spec, cache_directory="")
    # So that the base's pages count as its own, not as what training took.
    for parameter in (*model.decoder.parameters(), model.head):
        parameter.detach().sum()

    def train(command: Command) -> dict[str, object]:
        if "weights" in command:
            return asdict(weight_bytes(frozen_tensors(model), Path(settings["base"]) / WEIGHTS_FILE))
        rows = [
            EncodedRow(row["input_ids"], [bool(flag) for flag in row["completion_mask"]])
            for row in json.loads(Path(command["rows"]).read_text())
        ]
        steps = math.ceil(len(rows) / settings["batch_rows"])
        optimization = Optimization(
            max_steps=steps,
            batch_rows=settings["batch_rows"],
            learning_rate=settings["learning_rate"],
            checkpoint_interval_steps=steps + 1,
        )
        ended = 0.0

        def report(value: Value) -> None:
            nonlocal ended
            if isinstance(value, Progress):
                ended = time.perf_counter()

        with tempfile.TemporaryDirectory() as directory:
            trainer = Trainer(
                model,
                optimization,
                Plan.of(optimization, EvaluationOptions(evaluations=0)),
                patience=0,
                train_rows=rows,
                heldout_rows=(),
                checkpoints=CheckpointStore(Path(directory)),
                report=report,
                stop=threading.Event(),
                state=RunState(task_digest="", environment=Environment(base_digest="", service_version="")),
            )
            began = time.perf_counter()
            trainer.run()
        return {
            "seconds": ended - began,
            "tokens": trainer.state.tokens,
            "steps": trainer.state.step,
        }

    return train


if __name__ == "__main__":
    answer(start)
