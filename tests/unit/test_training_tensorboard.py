"""TensorBoard's event files of a TrainJob, read back record by record; what an attempt repeats counts once."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished, TrainTask
from finetuned_service.training.event_file import EventFile
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Value
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from training_tasks import Reports, counting_rows, make_base, make_task


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def logged(task: TrainTask) -> dict[str, dict[int, float]]:
    """Scalars by tag and step, as TensorBoard takes them: a session that starts at a step drops those from it on."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(Path(task.log_directory).iterdir()):
        for event in records(path):
            if event.session_log.status == SessionLog.START:
                found = {
                    tag: {step: value for step, value in values.items() if step < event.step}
                    for tag, values in found.items()
                }
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def records(path: Path) -> Iterator[Event]:
    """TFRecord: length, its checksum, data, its checksum."""
    data = path.read_bytes()
    while data:
        length, length_checksum = struct.unpack("<QI", data[:12])
        content = data[12 : 12 + length]
        (checksum,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert (length_checksum, checksum) == (masked_crc32c(data[:8]), masked_crc32c(content))
        yield Event.FromString(content)
        data = data[16 + length :]


class StopAfter(Reports):
    """Asks the run to stop once it has told of a step."""

    def __init__(self, step: int, stop: threading.Event) -> None:
        super().__init__()
        self._step, self._stop = step, stop

    def __call__(self, report: Value) -> None:
        super().__call__(report)
        if isinstance(report, Progress) and report.phase == "training" and report.step == self._step:
            self._stop.set()


class FullDisk:
    """A file that takes so many bytes more, and then none."""

    def __init__(self, file, room_bytes: int, number: int) -> None:
        self._file, self._room_bytes, self._number = file, room_bytes, number

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        taken = bytes(data[: self._room_bytes])
        if not taken:
            raise OSError(self._number, os.strerror(self._number))
        self._room_bytes -= len(taken)
        return self._file.write(taken)


@pytest.fixture
def task(tmp_path: Path) -> TrainTask:
    made = make_task(
        tmp_path,
        make_base(tmp_path / "base"),
        heldout=counting_rows(24, 27),
        evaluation={"evaluations": 2, "generation_rows": 0},
    )
    return made.model_copy(update={"log_directory": str(tmp_path / "tensorboard")})


def test_every_figure_of_a_run_is_logged(task):
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    found = logged(task)
    told = [r for r in reports.of(Progress) if r.phase == "training"]
    assert found["train/loss"] == pytest.approx({r.step: r.loss for r in told})
    assert found["train/learning_rate"] == pytest.approx({r.step: r.learning_rate for r in told})
    assert set(found["heldout/loss"]) == {3, 6}
    (finished,) = reports.of(TrainFinished)
    for group, step, metrics in (("baseline", 0, finished.baseline_metrics), ("result", 6, finished.metrics)):
        for metric in metrics:
            assert found[f"{group}/{metric.name}"] == pytest.approx({step: metric.value})


def test_an_attempt_that_goes_on_replaces_what_it_repeats(task):
    stop = threading.Event()
    assert run(task, StopAfter(4, stop), stop) == EXIT_STOPPED
    assert set(logged(task)["train/loss"]) == {1, 2, 3, 4}
    # As after a kill: the last checkpoint is an older one.
    shutil.rmtree(Path(task.work_directory, "checkpoints", "step-00000004"))
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    sessions = [
        event.step
        for path in sorted(Path(task.log_directory).iterdir())
        for event in records(path)
        if event.session_log.status == SessionLog.START
    ]
    assert sessions == [1, 4]
    assert set(logged(task)["train/loss"]) == {1, 2, 3, 4, 5, 6}
    assert len(list(Path(task.log_directory).iterdir())) == 2


def test_an_attempt_without_steps_leaves_those_of_the_ones_before(task):
    stop = threading.Event()
    assert run(task, StopAfter(6, stop), stop) == EXIT_STOPPED
    before = logged(task)
    assert set(before["train/loss"]) == {1, 2, 3, 4, 5, 6}
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    assert not [report for report in reports.of(Progress) if report.phase == "training" and report.step]
    found = logged(task)
    assert {tag: found[tag] for tag in before} == before
    assert (set(found["baseline/loss"]), set(found["result/loss"])) == ({0}, {6})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_for_figures_stops_the_run_and_it_goes_on_later(task, monkeypatch, number):
    add = EventFile.add_scalar

    def without_room(file: EventFile, tag: str, value: float, step: int) -> None:
        if step == 3:
            file._file = FullDisk(file._file, 7, number)
        add(file, tag, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "add_scalar", without_room)
        with pytest.raises(OSError, match=os.strerror(number)):
            run(task, Reports(), threading.Event())
    assert set(logged(task)["train/loss"]) == {1, 2}
    assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    assert set(logged(task)["train/loss"]) == {1, 2, 3, 4, 5, 6}
