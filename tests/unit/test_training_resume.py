"""A run that is ended at any moment goes on exactly: weights, optimizer, data order and generator, to the bit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.task import EXIT_FINISHED, TrainTask
from finetuned_service.training import model
from finetuned_service.training.run import run
from safetensors.torch import load_file
from training_tasks import Reports, counting_rows, make_base, make_task

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
