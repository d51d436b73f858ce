"""What a job will take is measured before its first step, told, refused where it does not fit, and leaves no trace."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.errors import ResourceExhausted
from finetuned_service.jobs.endings import over_memory
from finetuned_service.jobs.events import EstimateBasis, Notice, Progress
from finetuned_service.jobs.memory import MEMORY
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.task import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    Estimated,
    Failed,
    Suspended,
    TaskLimits,
    TrainTask,
)
from finetuned_service.training import attempt, estimate, model, probe
from finetuned_service.training import evaluate as evaluation
from finetuned_service.training.loop import Trainer
from finetuned_service.training.order import RowOrder
from finetuned_service.training.run import run
from safetensors.torch import load_file
from tiny_encoders import make_encoder_base
from tiny_jobs import train_job
from training_tasks import Reports, StopAfter, counting_rows, make_base, make_task

STEPS = 8
SETTINGS: dict[str, Any] = {
    "data": {"holdout_fraction": 0.25},
    "lora": {"rank": 4, "dropout": 0.3},
    "evaluation": {"evaluations": 2, "generation_rows": 0, "early_stopping_patience": 0},
    "optimization": {
        "max_steps": STEPS,
        "batch_rows": 6,
        "micro_batch_rows": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "checkpoint_interval_steps": 1,
        "kept_checkpoints": STEPS,
    },
}
PREFERENCES = [
    {
        "prompt": row["prompt"],
        "chosen": row["completion"],
        "rejected": counting_rows(n, n + 1)[0]["completion"],
    }
    for n, row in enumerate(counting_rows(100, 124))
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _every_second_step(monkeypatch):
    """A probe of a short job takes typical steps as well, and the largest one once."""
    monkeypatch.setattr(probe, "LARGEST_SECONDS", 0.0)
    monkeypatch.setattr(probe, "STEPS_FOR_ONE", 2)


def probed(task: TrainTask, steps: int = 3) -> TrainTask:
    return task.model_copy(update={"probe_steps": steps})


def kept(task: TrainTask) -> list[tuple[dict[str, torch.Tensor], bytes]]:
    """Everything that the checkpoints of a task hold, the states of torch's generator too."""
    paths = sorted(Path(task.work_directory, "checkpoints").iterdir())
    return [(load_file(path / "tensors.safetensors"), (path / "state.json").read_bytes()) for path in paths]


def assert_equal_to_the_bit(found: TrainTask, expected: TrainTask) -> None:
    for (tensors, state), (wanted, wanted_state) in zip(kept(found), kept(expected), strict=True):
        assert state == wanted_state
        assert set(tensors) == set(wanted)
        # As bytes: a zero with another sign would be equal as a number.
        assert {
            name for name in wanted if tensors[name].numpy().tobytes() != wanted[name].numpy().tobytes()
        } == set()


LORA = {"method": "LORA", "lora": {"rank": 4, "dropout": 0.3}}
MOODS = [{"text": f"the {word} {animal}", "label": word} for word in ("good", "bad") for animal in "abcdefgh"]
PAIRS = [{"anchor": f"{word} cat", "positive": f"the {word} mat"} for word in "abcdefghijklmnop"]


@pytest.mark.parametrize(
    ("make", "train", "spec"),
    [
        (make_base, counting_rows(0, 24), LORA),
        (make_base, counting_rows(0, 24), {"method": "FULL", "lora": {}}),
        (make_base, PREFERENCES, {**LORA, "objective": "DPO"}),
        (make_encoder_base, MOODS, {**LORA, "task": "text-classification"}),
        (make_encoder_base, PAIRS, {**LORA, "task": "feature-extraction"}),
    ],
    ids=["lora", "full", "preferences", "classification", "vectors"],
)
def test_a_probed_run_equals_one_without_a_probe_to_the_bit(tmp_path, make, train, spec):
    base = make(tmp_path / "base")
    plain = make_task(tmp_path / "plain", base, train=train, **(SETTINGS | spec))
    assert run(plain, Reports(), threading.Event()) == EXIT_FINISHED
    task = probed(make_task(tmp_path / "probed", base, train=train, **(SETTINGS | spec)))
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert len(reports.of(Estimated)) == 1
    assert_equal_to_the_bit(task, plain)


def test_an_estimate_tells_all_that_the_job_will_take(tmp_path):
    base = make_base(tmp_path / "base")
    task, reports = probed(make_task(tmp_path / "job", base, **SETTINGS)), Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (told,) = reports.of(Estimated)
    found, last = told.estimate, reports.of(Progress)
    trained = [progress for progress in last if progress.phase == "training"][-1]
    assert (found.steps, found.tokens) == (STEPS, trained.tokens)
    assert found.basis is EstimateBasis.MEASURED
    assert found.memory_budget_bytes == task.limits.memory_budget_bytes
    assert found.base_memory_bytes == (base / "model.safetensors").stat().st_size
    # What pytest itself holds is in both; a tiny model adds little to it.
    assert 0.5 * MEMORY.look() < found.memory_bytes < 2 * MEMORY.peak_bytes
    assert found.duration_seconds is not None
    assert found.duration_seconds > 0
    notices = [notice.text for notice in reports.of(Notice) if notice.text.startswith("expected")]
    assert len(notices) == 1
    assert "measured in 4 of its steps" in notices[0]
    assert not Path(task.work_directory, "probe").exists()


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path):
    base = make_base(tmp_path / "base")
    task, reports = (
        probed(make_task(tmp_path / "job", base, memory_budget_bytes=10**6, **SETTINGS)),
        Reports(),
    )
    with pytest.raises(ResourceExhausted) as refused:
        run(task, reports, threading.Event())
    (told,) = reports.of(Estimated)
    assert refused.value.metadata == {
        "memory_bytes": str(told.estimate.memory_bytes),
        "memory_budget_bytes": "1000000",
    }
    assert "allowed: 1 MB" in refused.value.message
    for remedy in ("micro_batch_rows", "max_row_tokens", "activation_checkpointing", "fewer parameters"):
        assert remedy in refused.value.message
    assert not any(progress.phase == "training" for progress in reports.of(Progress))
    assert not any(Path(task.work_directory, "checkpoints").iterdir())


class OnDevice:
    """A model that is elsewhere than the processor, with nothing behind it."""

    def named_parameters(self):
        yield "there", torch.nn.Parameter(torch.empty(1000, device="meta"))
        yield "here", torch.nn.Parameter(torch.empty(10**6))


def test_what_a_gpu_has_no_room_for_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    needed_bytes = 5_000_000 + 3 * 4 * 1000
    limits = TaskLimits(threads=1, memory_budget_bytes=1)
    monkeypatch.setattr(estimate, "memory_room", lambda *_: (5_000_000, needed_bytes))
    estimate.refuse_without_device_room(OnDevice(), limits)
    monkeypatch.setattr(estimate, "memory_room", lambda *_: (5_000_000, needed_bytes - 1))
    with pytest.raises(ResourceExhausted, match=r"GPU memory.*what is free there") as refused:
        estimate.refuse_without_device_room(OnDevice(), limits)
    assert refused.value.metadata["least_device_memory_bytes"] == str(needed_bytes)
    # Fewer rows at once would not help: the job is not tried again with half of them.
    assert over_memory(train_job(), Failed(error=refused.value.to_wire(), fault=Fault.USER)) is None

    def refuse(*_):
        raise ResourceExhausted("no room")

    monkeypatch.setattr(attempt, "refuse_without_device_room", refuse)
    task, reports = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS)), Reports()
    with pytest.raises(ResourceExhausted, match="no room"):
        run(task, reports, threading.Event())
    assert "probing" not in {progress.phase for progress in reports.of(Progress)}


def test_the_largest_step_is_among_those_measured(tmp_path, monkeypatch):
    packed: list[int] = []
    pack = model.pack
    monkeypatch.setattr(
        model,
        "pack",
        lambda rows, *device: packed.append(sum(len(row.token_ids) for row in rows)) or pack(rows, *device),
    )
    base = make_base(tmp_path / "base")
    rows = [*counting_rows(0, 60), {"prompt": "say much", "completion": "one " * 60}, *counting_rows(60, 90)]
    one_each = {**SETTINGS["optimization"], "max_steps": 91, "batch_rows": 1, "micro_batch_rows": 1}
    settings = {**SETTINGS, "data": {"holdout_fraction": 0}, "optimization": one_each}
    task = probed(make_task(tmp_path / "job", base, train=rows, **settings), steps=2)
    stop = StopAfter(phase="training")
    assert run(task, stop, stop) == EXIT_STOPPED
    probed_tokens, longest = packed[:3], max(packed)
    assert probed_tokens[0] == longest
    assert max(probed_tokens[1:]) < longest / 2, "typical ones are not"


def test_the_largest_step_is_looked_for_in_a_whole_epoch_and_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "LOOK_STEPS", 1)
    monkeypatch.setattr(probe, "LARGEST_SECONDS", 3600.0)
    taken: list[int] = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer: taken.append(trainer.state.step) or step(trainer))
    rows = [*counting_rows(0, 17), {"prompt": "say much", "completion": "one " * 60}]
    one_each = {**SETTINGS["optimization"], "max_steps": 18, "batch_rows": 1, "micro_batch_rows": 1}
    settings = {**SETTINGS, "data": {"holdout_fraction": 0}, "optimization": one_each}
    task = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), train=rows, **settings), steps=2)
    stop = StopAfter(phase="training")
    assert run(task, stop, stop) == EXIT_STOPPED
    order = RowOrder(len(rows), 1, one_each.get("seed", 0))
    longest = next(number for number in range(18) if order.rows_of_step(number) == [17])
    repeats = 1 + 18 // probe.STEPS_FOR_ONE
    assert taken[:repeats] == [longest] * repeats
    assert longest not in taken[repeats : repeats + 2]


def test_a_short_job_measures_its_largest_step_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "STEPS_FOR_ONE", 20)
    task = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS))
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert any("measured in 1 of its steps" in notice.text for notice in reports.of(Notice))


class Killed(BaseException):
    """As a SIGKILL: nothing of the run handles it."""


def test_a_run_killed_in_its_probe_is_probed_again_and_one_with_a_checkpoint_is_not(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    plain = make_task(tmp_path / "plain", base, **SETTINGS)
    assert run(plain, Reports(), threading.Event()) == EXIT_FINISHED
    task = probed(make_task(tmp_path / "job", base, **SETTINGS))
    with monkeypatch.context() as patch:
        patch.setattr(probe, "_evaluation_seconds", lambda _: (_ for _ in ()).throw(Killed))
        patch.setattr(probe.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(task, Reports(), threading.Event())
    assert Path(task.work_directory, "probe").exists()
    stop = StopAfter(steps=3)
    assert run(task, stop, stop) == EXIT_STOPPED
    assert len(stop.reports.of(Estimated)) == 1
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert reports.of(Estimated) == []
    assert_equal_to_the_bit(task, plain)


def test_a_job_may_wait_when_it_has_measured_itself(tmp_path):
    base = make_base(tmp_path / "base")
    plain = make_task(tmp_path / "plain", base, **SETTINGS)
    assert run(plain, Reports(), threading.Event()) == EXIT_FINISHED
    task, reports = make_task(tmp_path / "job", base, **SETTINGS), Reports()
    waiting = task.model_copy(update={"pause_after_estimate": True})
    assert run(waiting, reports, threading.Event()) == EXIT_STOPPED
    assert [said.reason for said in reports.of(Suspended)] == ["ESTIMATED"]
    assert len(reports.of(Estimated)) == 1, "also where nothing else would be measured"
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    assert_equal_to_the_bit(task, plain)


def test_who_waits_for_an_estimate_that_cannot_be_measured_is_told_why(tmp_path, monkeypatch):
    task, reports = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS)), Reports()
    waiting = task.model_copy(update={"pause_after_estimate": True})
    stop = StopAfter(phase="probing")
    assert run(waiting, stop, stop) == EXIT_STOPPED
    assert stop.reports.of(Suspended) == [], "it was stopped, and does not wait for anybody"
    monkeypatch.setattr(attempt, "probe", lambda *_: None)
    assert run(waiting, reports, threading.Event()) == EXIT_FINISHED
    assert reports.of(Suspended) == []


def test_the_largest_step_is_measured_with_the_moments_of_adamw(tmp_path, monkeypatch):
    seen: list[set[str]] = []
    step = Trainer.step

    def looked(trainer):
        states = trainer.optimizer.state_dict()["state"].values()
        seen.append({name for state in states for name in state})
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", looked)
    task = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS), steps=1)
    stop = StopAfter(phase="training")
    run(task, stop, stop)
    assert {"exp_avg", "exp_avg_sq"} <= seen[0]


def test_a_stop_ends_a_probe_at_once(tmp_path):
    task = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS))
    stop = StopAfter(phase="probing")
    assert run(task, stop, stop) == EXIT_STOPPED
    assert stop.reports.of(Estimated) == []
    assert not Path(task.work_directory, "probe").exists()


def test_what_the_last_evaluation_holds_is_expected_where_it_is_more(tmp_path, monkeypatch):
    """After training an engine measures the adapter, while the trained model is still there: as much as for the base."""
    more_bytes = 3 * 10**9
    evaluate = evaluation.Evaluator.evaluate

    def evaluated(self, subject, adapter=None):
        found = evaluate(self, subject, adapter)
        assert found.memory_bytes >= 0
        return found.model_copy(update={"memory_bytes": more_bytes})

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", evaluated)
    reports = Reports()
    task = probed(make_task(tmp_path / "job", make_base(tmp_path / "base"), **SETTINGS))
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (told,) = reports.of(Estimated)
    assert more_bytes < told.estimate.memory_bytes < more_bytes + MEMORY.peak_bytes
