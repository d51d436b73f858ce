"""A job that computes with what another process lends it: nothing is kept or told of what came after that one's end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetuned_service.app import Server
from finetuned_service.bases import lender as lender_module
from finetuned_service.bases import resident
from finetuned_service.bases.lender import BORROWED, Lender, LenderEnded
from finetuned_service.bases.resident import RESIDENT
from finetuned_service.jobs.assignment import ResidentBase
from finetuned_service.jobs.endings import lost_engine
from finetuned_service.jobs.events import Progress, Usage
from finetuned_service.jobs.process import ENGINE_ENDED
from finetuned_service.jobs.states import Fault, JobState, StateReason
from finetuned_service.jobs.task import EXIT_FAILED, EXIT_FINISHED, Suspended
from finetuned_service.training.evaluate import Evaluated, Evaluator
from finetuned_service.training.preferences import reference
from finetuned_service.training.run import run
from tiny_jobs import TENANT, train_job
from tiny_worker import Workplace, eventually
from training_tasks import Reports, make_base, make_task
from unit.test_dispatcher import SUCCEED, reasons
from unit.test_job_process import job, reports_of, run_python, write_task
from unit.test_training_resume import SETTINGS, kept


class Other:
    """Another process, which ends when told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
        started = int(lender_module._stat(self._process.pid)[19])
        self.lender = Lender(process_id=self._process.pid, start_ticks=started)

    def end(self) -> None:
        """It is over, and nobody has taken note of it."""
        os.kill(self._process.pid, signal.SIGKILL)  # not its own `kill`, which would take note
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _nothing_borrowed() -> Iterator[None]:
    yield
    BORROWED.give_back()


# Whether it lives


def test_a_process_lives_until_its_end_also_while_nobody_has_taken_note_of_it(other: Other) -> None:
    assert other.lender.lives()
    assert Lender.this_process().lives()
    other.end()
    assert not other.lender.lives()
    other.close()
    assert not other.lender.lives()


def test_a_process_that_is_stopped_for_a_while_lives(other: Other) -> None:
    os.kill(other.lender.process_id, signal.SIGSTOP)
    assert other.lender.lives()


def test_a_later_process_with_its_number_is_another_one() -> None:
    this = Lender.this_process()
    assert not Lender(process_id=this.process_id, start_ticks=this.start_ticks - 1).lives()


def test_one_that_frees_its_memory_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first of its end, which the kernel's flags tell of, and the last, after which it is gone."""
    this = Lender.this_process()
    fields = lender_module._stat(this.process_id)
    fields[6] = str(int(fields[6]) | 0x4)
    monkeypatch.setattr(lender_module, "_stat", lambda _: fields)
    assert not this.lives()


def test_who_borrows_nothing_has_nothing_to_lose(other: Other) -> None:
    other.end()
    BORROWED.refuse_lost()
    with pytest.raises(LenderEnded):
        BORROWED.depend_on(other.lender)
    BORROWED.give_back()
    BORROWED.refuse_lost()


# Opening


def test_nothing_is_opened_of_a_process_that_is_gone(
    other: Other, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(resident, "_opened", opened.append)
    other.end()
    with pytest.raises(LenderEnded):
        RESIDENT.open(tmp_path, [SimpleNamespace(name="a")], other.lender)
    assert opened == []


@pytest.mark.parametrize("ends", [False, True])
def test_what_cannot_be_opened_is_not_borrowed_and_its_lenders_end_is_told_as_such(
    other: Other, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: bool
) -> None:
    def fail(_: object) -> object:
        if ends:
            other.end()
        raise RuntimeError("invalid device context")

    monkeypatch.setattr(resident, "_opened", fail)
    with pytest.raises(LenderEnded if ends else RuntimeError):
        RESIDENT.open(tmp_path, [SimpleNamespace(name="a")], other.lender)
    if not ends:
        other.end()
        BORROWED.refuse_lost()


# The job process

LEND = """
import subprocess, sys, threading
from finetuned_service.bases import lender
from finetuned_service.bases.lender import BORROWED, Lender
engine = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
BORROWED.depend_on(Lender(process_id=engine.pid, start_ticks=int(lender._stat(engine.pid)[19])))
report(Progress(phase="measuring", step=1))
"""


def test_a_job_ends_by_itself_when_its_lender_has(tmp_path: Path) -> None:
    done = run_python(job(LEND + "engine.kill()\nthreading.Event().wait()"), write_task(tmp_path))
    _, told, usage, last = reports_of(done)
    assert done.returncode == EXIT_FAILED
    assert told == Progress(phase="measuring", step=1)
    assert isinstance(usage, Usage)
    assert last == Suspended(reason="ENGINE_ENDED", text=ENGINE_ENDED)


@pytest.mark.parametrize(
    "then",
    [
        "report(Progress(phase='measuring', step=2))",
        "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
        "from finetuned_service.errors import TrainingDiverged\nraise TrainingDiverged('the loss is nan')",
    ],
)
def test_what_it_finds_afterwards_is_not_told_whatever_it_is(tmp_path: Path, then: str) -> None:
    unwatched = "lender.WATCH_INTERVAL_SECONDS = 1000.0\n"
    body = LEND + "engine.kill()\nengine.wait()\n" + then
    program = job(body).replace(
        "def work(", f"from finetuned_service.bases import lender\n{unwatched}\ndef work("
    )
    found = reports_of(done := run_python(program, write_task(tmp_path)))
    assert (done.returncode, found[-1]) == (EXIT_FAILED, Suspended(reason="ENGINE_ENDED", text=ENGINE_ENDED))
    assert [report.step for report in found if isinstance(report, Progress)] == [1]


# What training keeps


@pytest.mark.parametrize("ends_after_micro_batches", [0, 7, 23])
def test_a_step_after_the_lenders_end_leaves_no_checkpoint_and_the_next_attempt_goes_on_to_the_bit(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch, ends_after_micro_batches: int
) -> None:
    from finetuned_service.training import model

    base = make_base(tmp_path / "base")
    whole = make_task(tmp_path / "whole", base, **SETTINGS)
    assert run(whole, Reports(), threading.Event()) == EXIT_FINISHED
    threads, pack, seen = torch.get_num_threads(), model.pack, []

    def packing(rows: Any, *device: Any) -> Any:
        if len(seen) == ends_after_micro_batches:
            other.end()
        seen.append(rows)
        return pack(rows, *device)

    task = make_task(tmp_path / "lent", base, **SETTINGS)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(model, "pack", packing)
            BORROWED.depend_on(other.lender)
            with pytest.raises(LenderEnded):
                run(task, Reports(), threading.Event())
        checkpoints = Path(task.work_directory, "checkpoints")
        done = ends_after_micro_batches // 3
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            f"step-{step:08}" for step in range(1, done + 1)
        ]
        BORROWED.give_back()
        assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    finally:
        torch.set_num_threads(threads)
    (expected, _), (found, _) = kept(whole, 8), kept(task, 8)
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()


def test_figures_found_after_the_lenders_end_are_not_kept(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    BORROWED.depend_on(other.lender)

    def compute(*_: object) -> Any:
        other.end()
        return Evaluated(subject="baseline", metrics=())

    evaluator: Any = SimpleNamespace(evaluate=compute)
    with pytest.raises(LenderEnded):
        Evaluator.evaluate_once(evaluator, "baseline", None, tmp_path / "kept", "digest")
    monkeypatch.setattr(reference, "_compute", compute)
    nothing: Any = None
    with pytest.raises(LenderEnded):
        reference.with_reference(nothing, [], tmp_path / "kept", "digest", Reports(), threading.Event())
    assert list(tmp_path.iterdir()) == []


# The queue


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    made = Workplace(tmp_path)
    yield made
    made.close()


def test_a_job_whose_engine_ended_is_queued_again_with_the_reason_and_goes_on(place: Workplace) -> None:
    done = place.run(train_job(), f"note,once:no-engine,once:exit=1,{SUCCEED}")
    assert (done.state, done.attempt, done.losses, done.error) == (JobState.SUCCEEDED, 2, 0, None)
    assert ("QUEUED", "ENGINE_ENDED") in reasons(place, done)
    assert "the engine has ended" in place.notices(done)


def test_a_job_whose_engine_ends_every_time_fails(place: Workplace) -> None:
    done = place.run(train_job(), "note,no-engine,exit=1")
    assert (done.state, done.fault, done.attempt) == (JobState.FAILED, Fault.SYSTEM, 3)
    assert (done.losses, done.engine_ends) == (0, 2)
    assert done.error is not None
    assert done.error["metadata"] == {"attempts": "3"}
    assert "has ended 3 times while the job computed with it" in done.error["message"]
    assert "in attempt 3" in done.error["message"]
    assert "micro_batch_rows" in done.error["message"]
    assert place.notices(done).count("the engine has ended") == 3


def test_a_checkpoint_begins_the_count_of_ended_engines_anew(place: Workplace) -> None:
    steps = "note,no-engine,exit=1"
    done = place.run(train_job(), f"third:checkpoint=8,{steps}")
    assert (done.state, done.attempt, done.engine_ends) == (JobState.FAILED, 5, 2)
    assert done.error is not None
    assert "has ended 3 times" in done.error["message"]


def test_one_that_was_to_be_paused_is_paused(place: Workplace) -> None:
    submitted = place.submit(train_job())
    with place.dispatcher("note,gate,no-engine,exit=1"):
        place.first_pid(submitted)
        place.store.pause(TENANT, submitted.id)
        place.open_gate(submitted)
        paused = place.reaches(submitted, JobState.PAUSED)
    assert (paused.state_reason, paused.attempt, paused.engine_ends) == (StateReason.USER, 1, 0)


def test_one_that_was_to_be_paused_is_paused_at_the_last_end_too() -> None:
    last = train_job().model_copy(update={"engine_ends": 2, "state": JobState.PAUSING})
    assert lost_engine(last, "").state is JobState.QUEUED  # which its pause makes PAUSED
    assert lost_engine(last.model_copy(update={"state": JobState.RUNNING}), "").state is JobState.FAILED


def test_jobs_wait_for_the_engine_that_is_to_lend_its_base_again(place: Workplace) -> None:
    asked: list[bool] = []
    returning = [True]

    def told() -> ResidentBase:
        asked.append(True)
        return ResidentBase(returning=returning[0])

    place.assignments = dataclasses.replace(place.assignments, resident=told)
    submitted = place.submit(train_job())
    with place.dispatcher(SUCCEED):
        eventually(lambda: len(asked) > 3)
        assert place.job(submitted).state is JobState.QUEUED
        returning[0] = False
        assert place.reaches(submitted, JobState.SUCCEEDED).attempt == 1


def test_a_server_says_whether_what_it_lent_is_about_to_return() -> None:
    server: Any = object.__new__(Server)
    this = Lender.this_process()
    ready = SimpleNamespace(base_digest="sha256:7", shared=("tensor",), lender=this)
    for lends, found, expected in (
        (True, ready, ResidentBase("sha256:7", ("tensor",), this)),  # pyright: ignore[reportArgumentType]  # stands for one
        (True, None, ResidentBase(returning=True)),
        (False, None, ResidentBase()),
    ):
        server._lends, server.engine = lends, SimpleNamespace(ready=found)
        assert server._resident() == expected
