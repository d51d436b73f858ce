"""`python -m finetuned_service.training` as the dispatcher runs it: killed, stopped, sharing the base, refusing."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.jobs.events import Checkpoint, Notice, Progress
from finetuned_service.jobs.memory import memory_report
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.task import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    REPORTS,
    Failed,
    TrainFinished,
    TrainTask,
)
from finetuned_service.training.run import run
from safetensors import safe_open
from training_tasks import Reports, counting_rows, make_base, make_task, parse_reports, start_process


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny", dtype=torch.bfloat16)


def digest(task: TrainTask) -> str:
    geometry = BaseGeometry.of_directory(Path(task.base_directory))
    return check_adapter(Path(task.output_directory), geometry, max_rank=64).digest


def training_steps(stream: IO[bytes] | None) -> Iterator[Progress]:
    """Finished steps as they are reported."""
    assert stream is not None
    for line in stream:
        report = REPORTS.validate_json(line)
        if isinstance(report, Progress) and report.phase == "training":
            yield report


def in_the_foreground(task: TrainTask) -> TrainTask:
    """Without SCHED_IDLE, so that a busy machine does not stretch the test."""
    limits = task.limits.model_copy(update={"yield_to_serving": False})
    return task.model_copy(update={"limits": limits})


def test_a_killed_process_goes_on_and_ends_with_the_digest_of_an_uninterrupted_run(tmp_path, base):
    settings = {
        "heldout": counting_rows(24, 30),
        "lora": {"rank": 4, "dropout": 0.2},
        "optimization": {
            "max_steps": 40,
            "batch_rows": 4,
            "learning_rate": 1e-2,
            "checkpoint_interval_steps": 3,
        },
        "evaluation": {"evaluations": 4, "generation_rows": 2, "early_stopping_patience": 0},
    }
    whole = make_task(tmp_path / "whole", base, **settings)
    threads = torch.get_num_threads()
    uninterrupted = Reports()
    assert run(whole, uninterrupted, threading.Event()) == EXIT_FINISHED
    torch.set_num_threads(threads)

    killed = in_the_foreground(make_task(tmp_path / "killed", base, **settings))
    last_step = random.Random(11).randint(4, 36)
    process = start_process(killed, tmp_path / "killed")
    with process:
        for step in training_steps(process.stdout):
            if step.step == last_step:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not Path(killed.output_directory).exists()

    again = start_process(killed.model_copy(update={"attempt": 2}), tmp_path / "killed")
    output, log = again.communicate()
    reports = parse_reports(output)
    assert again.returncode == EXIT_FINISHED, log
    assert reports.of(TrainFinished) == uninterrupted.of(TrainFinished)
    assert digest(killed) == digest(whole)
    steps = [report.step for report in reports.of(Progress) if report.phase == "training"]
    assert 1 < steps[0] <= last_step + 1 or steps == []


def test_sigterm_leaves_a_checkpoint_and_the_base_is_shared_all_the_while(tmp_path, base):
    settings = {"max_steps": 10_000, "batch_rows": 2, "learning_rate": 1e-3}
    task = make_task(tmp_path, base, optimization=settings, data={"holdout_fraction": 0})
    weights = base / "model.safetensors"
    with safe_open(weights, "pt") as file:
        # As the server does: every page of the base is mapped and read by another process.
        held = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
        sums = [tensor.float().sum() for tensor in held]
        process = start_process(task, tmp_path)
        steps = training_steps(process.stdout)
        next(steps)
        (mapping,) = [m for m in memory_report(pid=str(process.pid)) if m.path == str(weights)]
        scheduler = os.sched_getscheduler(process.pid)
        process.send_signal(signal.SIGTERM)
        rest = list(steps)
        output, log = process.communicate()
    assert len(sums) == len(held)
    assert mapping.copied_bytes == 0
    assert mapping.shared_bytes > weights.stat().st_size // 2
    assert scheduler == os.SCHED_IDLE
    assert process.returncode == EXIT_STOPPED, log
    assert output == b""
    last = max([1, *(step.step for step in rest)])
    assert (Path(task.work_directory) / "checkpoints" / f"step-{last:08}" / "state.json").exists()


def test_the_users_faults_are_reported_as_such(tmp_path, base):
    rows = [*counting_rows(0, 4), {"prompt": "x", "completion": "one " * 300}]
    task = in_the_foreground(make_task(tmp_path, base, train=rows, data={"max_row_tokens": 64}))
    process = start_process(task, tmp_path)
    output, log = process.communicate()
    reports = parse_reports(output)
    assert process.returncode == EXIT_FAILED, log
    failed = reports.all[-1]
    assert isinstance(failed, Failed)
    assert failed.fault is Fault.USER
    assert failed.error["reason"] == "INVALID_DATA"
    assert [field for field, _ in failed.error["violations"]] == ["line 5"]


def test_more_memory_than_allowed_ends_the_process_with_a_remedy(tmp_path, base):
    settings = {"max_steps": 10_000, "batch_rows": 2, "learning_rate": 1e-3}
    task = in_the_foreground(make_task(tmp_path, base, optimization=settings, memory_budget_bytes=64 * 10**6))
    process = start_process(task, tmp_path)
    output, log = process.communicate()
    failed = parse_reports(output).all[-1]
    assert process.returncode == EXIT_FAILED, log
    assert isinstance(failed, Failed)
    assert failed.error["reason"] == "NO_ROOM"
    assert "micro_batch_rows" in failed.error["message"]


def test_a_process_says_how_it_runs(tmp_path, base):
    task = make_task(
        tmp_path,
        base,
        heldout=counting_rows(24, 27),
        optimization={"max_steps": 2, "batch_rows": 2, "learning_rate": 1e-3},
    )
    process = start_process(task, tmp_path)
    output, log = process.communicate()
    reports = parse_reports(output)
    assert process.returncode == EXIT_FINISHED, log
    notices = reports.of(Notice)
    assert notices[0].text.startswith("job process: 1 threads, SCHED_IDLE, oom_score_adj 1000, memory budget")
    assert notices[0].severity == "INFO"
    assert any(notice.text.startswith("memory after training: ") for notice in notices)
    assert reports.of(Checkpoint)
    last, used = (json.loads(line) for line in output.splitlines()[-2:])
    assert last["kind"] == "train_finished"
    assert used["kind"] == "usage"
    assert used["memory_bytes"] > 0
