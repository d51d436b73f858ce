"""Which device a server computes on, and what its jobs are told of it; no GPU is needed to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetuned_service.bases import device as devices
from finetuned_service.bases.device import CPU, device_name, instruction_set, resolve_device
from finetuned_service.bases.lender import Lender
from finetuned_service.bases.resident import RESIDENT, share
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.engine import choose
from finetuned_service.engine.choose import load_model
from finetuned_service.errors import StartRefused
from finetuned_service.jobs.assignment import ResidentBase
from finetuned_service.jobs.task import TrainTask
from finetuned_service.names import BaseName
from finetuned_service.settings import Settings
from pydantic import ValidationError
from tiny_jobs import train_job
from tiny_models import load_plain, save_tiny_base
from tiny_worker import Workplace

SHARED = SharedTensor(
    name="model.norm.weight",
    dtype="bfloat16",
    shape=(4,),
    stride=(1,),
    offset=0,
    device=0,
    handle="AAEC",
    storage_bytes=8,
    storage_offset_bytes=512,
    counter="Yw==",
    counter_offset=3,
    event="",
    event_sync=False,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_taken_where_there_is_one_and_the_first_unless_another_is_named() -> None:
    found = [resolve_device(wanted) for wanted in ("auto", "cpu", "cuda", "cuda:1")]
    assert found == [torch.device("cuda", 0), CPU, torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(
        StartRefused, match=r"'cuda:7' is asked for; found: 2 CUDA devices.*'cuda:0' to 'cuda:1'"
    ):
        resolve_device("cuda:7")


@pytest.mark.usefixtures("no_gpu")
def test_without_one_auto_is_the_cpu_and_cuda_is_refused_with_what_would_help() -> None:
    assert resolve_device("auto") == CPU
    with pytest.raises(
        StartRefused, match=r"finds no CUDA device.*Install.*or choose device 'cpu' or 'auto'"
    ):
        resolve_device("cuda")


def test_the_processor_is_told_as_before() -> None:
    assert device_name(CPU) == "cpu"
    assert instruction_set(CPU) == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:1000"])
def test_other_names_are_no_setting(wrong: str) -> None:
    with pytest.raises(ValidationError, match="device"):
        Settings(device=wrong)


def test_the_native_path_is_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_base(tmp_path / "base")
    monkeypatch.setattr(choose, "resolve_device", lambda _: torch.device("cuda", 0))
    with pytest.raises(StartRefused, match=r"on the CPU, not on cuda:0: choose device 'cpu', or compute"):
        load_model(base, device="cuda", compute="native")


def test_a_base_on_the_cpu_is_shared_by_its_file_alone(tmp_path: Path) -> None:
    model = load_plain(save_tiny_base(tmp_path / "base"))
    assert share(model.named_parameters()) == ()
    assert RESIDENT.take(model, tmp_path / "base") == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    made = Workplace(tmp_path)
    yield made
    made.close()


def test_a_job_is_told_of_the_servers_base_where_it_trains_on_that_one(place: Workplace) -> None:
    claimed = place.submit(train_job())
    directory = place.directory / "jobs" / claimed.id

    lender = Lender.this_process()

    def told_of(digest: str) -> tuple[tuple[SharedTensor, ...], Lender | None]:
        assignments = place.assignments
        asked = type(assignments)(
            assignments.bases,
            assignments.datasets,
            assignments.registry,
            assignments.limits,
            device="cuda",
            resident=lambda: ResidentBase(digest, (SHARED,), lender),
        )
        task = asked.task_for(claimed, directory)
        assert isinstance(task, TrainTask)
        assert task.device == "cuda"
        assert TrainTask.model_validate_json(task.model_dump_json()) == task
        return task.resident, task.lender

    assert told_of(place.bases.get(BaseName("tiny")).digest) == ((SHARED,), lender)
    assert told_of("sha256:" + "7" * 64) == ((), None)
