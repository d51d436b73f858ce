"""A run that is ended at any moment goes on exactly: weights, optimizer, data order and generator, to the bit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.events import EvaluationFinished, Progress
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished, TrainTask
from finetuned_service.training import model
from finetuned_service.training.run import run
from safetensors.torch import load_file
from training_tasks import Reports, StopAfter, counting_rows, make_base, make_task

STEPS, MICRO_BATCHES = 8, 3
"""Of 6 rows in micro-batches of 2; 13 rows are one epoch, so that steps begin and end within epochs."""
SETTINGS = {
    "train": counting_rows(0, 13),
    "data": {"holdout_fraction": 0},
    "lora": {"rank": 4, "dropout": 0.3},
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


class Killed(BaseException):
    """As a SIGKILL: nothing of the run handles it."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def packed(monkeypatch):
    """The rows of each micro-batch that was computed; from `kill_at` on the process is dead."""

    class Packed(list):
        kill_at = 10**9

    seen, pack = Packed(), model.pack

    def count(rows, *device):
        if len(seen) == seen.kill_at:
            raise Killed
        seen.append(tuple(row.token_ids for row in rows))
        return pack(rows, *device)

    monkeypatch.setattr(model, "pack", count)
    return seen


def kept(task: TrainTask, step: int) -> tuple[dict[str, torch.Tensor], bytes]:
    """Everything that the checkpoint after a step holds."""
    directory = Path(task.work_directory, "checkpoints", f"step-{step:08}")
    return load_file(directory / "tensors.safetensors"), (directory / "state.json").read_bytes()


# Between steps, within the first micro-batch of a step, in the middle of an accumulation window, at its end.
@pytest.mark.parametrize("killed_after_micro_batches", [0, 1, 6, 7, 8, 14, 22, 23])
def test_killed_at_any_micro_batch_it_goes_on_to_the_bit(tmp_path, packed, killed_after_micro_batches):
    base = make_base(tmp_path / "base")
    whole = make_task(tmp_path / "whole", base, **SETTINGS)
    assert run(whole, Reports(), threading.Event()) == EXIT_FINISHED
    order = list(packed)
    assert len(order) == STEPS * MICRO_BATCHES

    packed.clear()
    packed.kill_at = killed_after_micro_batches
    task = make_task(tmp_path / "killed", base, **SETTINGS)
    with pytest.raises(Killed):
        run(task, Reports(), threading.Event())
    packed.kill_at = 10**9
    torch.manual_seed(999)
    done = killed_after_micro_batches // MICRO_BATCHES * MICRO_BATCHES
    del packed[done:]
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED

    assert list(packed) == order
    for step in range(1, STEPS + 1):
        (expected, state), (found, state_found) = kept(whole, step), kept(task, step)
        assert state_found == state
        assert set(found) == set(expected)
        assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()


CONTRADICTED = [{**row, "completion": row["completion"][::-1]} for row in counting_rows(0, 8)]
"""Held-out answers that are not the training rows': the loss on them can only rise in the end."""
EARLY = {
    "train": counting_rows(0, 8),
    "heldout": CONTRADICTED,
    "lora": {"rank": 4, "dropout": 0.3},
    "evaluation": {"evaluations": 30, "early_stopping_patience": 3, "generation_rows": 0},
    "optimization": {
        "max_steps": 60,
        "batch_rows": 6,
        "learning_rate": 2e-2,
        "schedule": "CONSTANT",
        "checkpoint_interval_steps": 5,
    },
}


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory):
    """A base, a run on it that nobody stopped, and what it told."""
    directory = tmp_path_factory.mktemp("early")
    base = make_base(directory / "base")
    task, reports = make_task(directory / "whole", base, **EARLY), Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert reports.of(TrainFinished)[0].stopped_early
    return base, task, reports


def steps_of(reports: Reports) -> list[int]:
    return [progress.step for progress in reports.of(Progress) if progress.phase == "training"]


def losses_of(reports: Reports) -> list[tuple[int, float]]:
    """Of the held-out rows, between steps."""
    return [
        (found.step, found.metrics[0].value)
        for found in reports.of(EvaluationFinished)
        if found.subject == "adapter"
    ][: -1 if reports.of(TrainFinished) else None]


# Around the best step, amid the patience, and before the last step of all.
@pytest.mark.parametrize("stopped_before_end", [8, 6, 5, 3, 1])
def test_a_run_that_was_stopped_ends_early_where_it_would_have_ended(
    tmp_path, ended_early, stopped_before_end
):
    base, whole, uninterrupted = ended_early
    last = steps_of(uninterrupted)[-1]
    assert stopped_before_end < last < 60
    task, stop = make_task(tmp_path, base, **EARLY), StopAfter(last - stopped_before_end)
    assert run(task, stop, stop) == EXIT_STOPPED
    torch.manual_seed(999)
    rest = Reports()
    assert run(task, rest, threading.Event()) == EXIT_FINISHED
    assert steps_of(stop.reports) + steps_of(rest) == steps_of(uninterrupted)
    assert losses_of(stop.reports) + losses_of(rest) == losses_of(uninterrupted)
    assert rest.of(TrainFinished) == uninterrupted.of(TrainFinished)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (
            Path(task.output_directory, name).read_bytes() == Path(whole.output_directory, name).read_bytes()
        )
    for step in (last, min(losses_of(uninterrupted), key=lambda found: found[1])[0]):
        (expected, state), (found, state_found) = kept(whole, step), kept(task, step)
        assert state_found == state
        assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()
