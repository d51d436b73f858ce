"""Pausing, resuming and deleting jobs through a real server, by their user and by a full disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from finetuned import Client, Job, JobState, Lora
from finetuned.errors import JobStateConflict, NotFound, ResourceInUse
from finetuned_service.jobs import room
from served_jobs import eventually, finished, start
from tiny_server import TinyServer, make_data_directory, running

DROPOUT = {"steps": 300, "every": 130, "lora": Lora(rank=4, dropout=0.2)}
"""Long enough to be paused under way, and not at a checkpoint."""


def states(client: Client, job: Job) -> list[tuple[str, str]]:
    return [(e.state.state, e.state.reason) for e in client.jobs.events(job.name) if e.state]


def paused(client: Client, job: Job) -> Job:
    eventually(lambda: client.jobs.get(job.name).state is JobState.PAUSED)
    return client.jobs.get(job.name)


def test_a_paused_and_resumed_job_ends_as_one_that_never_was(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "paused")
    whole = finished(client, start(client, "paused", "whole", **DROPOUT)).check()
    job = start(client, "paused", "paused", **DROPOUT)
    eventually(lambda: (p := client.jobs.get(job.name).progress) is not None and p.phase == "training")
    assert client.jobs.pause(job.name).state in {JobState.PAUSING, JobState.PAUSED}
    waiting = paused(client, job)
    assert waiting.state_reason == "USER"
    assert waiting.checkpoints
    assert client.jobs.resume(job.name).state is JobState.QUEUED
    done = finished(client, job).check()
    assert done.attempt == 1
    assert done.train_result is not None
    assert whole.train_result is not None
    assert done.train_result.digest == whole.train_result.digest
    assert [state for state, _ in states(client, job)] == [
        *("QUEUED", "RUNNING", "PAUSING", "PAUSED", "QUEUED", "RUNNING", "SUCCEEDED")
    ]
    for call in (client.jobs.pause, client.jobs.resume):
        with pytest.raises(JobStateConflict) as refused:
            call(job.name)
        assert refused.value.metadata == {"state": "SUCCEEDED"}


def test_a_job_shows_what_it_will_take_before_it_begins(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "shown")
    job = start(client, "shown", "shown", pause_after_estimate=True)
    waiting = paused(client, job)
    assert (waiting.state_reason, waiting.checkpoints) == ("ESTIMATED", ())
    assert waiting.estimate is not None
    assert waiting.estimate.basis == "MEASURED"
    assert waiting.estimate.duration_seconds is not None
    client.jobs.resume(job.name)
    done = finished(client, job).check()
    assert done.estimate == waiting.estimate, "it is not measured again"
    assert [state for state, _ in states(client, job)] == [
        *("QUEUED", "RUNNING", "PAUSING", "PAUSED", "QUEUED", "RUNNING", "SUCCEEDED")
    ]


def test_deleting(client: Client, server: TinyServer, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "deleted")
    job = finished(client, start(client, "deleted", "deleted")).check()
    files = server.data_directory / "jobs" / job.name.rpartition("/")[2]
    with pytest.raises(ResourceInUse, match="Delete the version first") as refused:
        client.jobs.delete(job.name)
    assert job.train_result is not None
    assert refused.value.metadata == {"used_by": job.train_result.version}
    client.adapters.delete("deleted")
    assert files.exists()
    client.jobs.delete(job.name)
    assert not files.exists()
    with pytest.raises(NotFound):
        client.jobs.get(job.name)
    with pytest.raises(NotFound):
        client.jobs.delete(job.name)
    waiting = start(client, "deleted", "deleted", steps=100_000)
    with pytest.raises(JobStateConflict, match="cancel it first"):
        client.jobs.delete(waiting.name)
    client.jobs.cancel(waiting.name)
    finished(client, waiting)


def test_a_full_disk_pauses_jobs_and_room_resumes_them(
    tmp_path: Path, tmp_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data_directory(tmp_path)
    disk = SimpleNamespace(free=10**12)
    with (
        running(tmp_path / "data", min_free_disk_bytes=10**9) as server,
        Client(server.endpoint) as client,
    ):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: disk)
        client.datasets.upload(tmp_rows, "rows")
        job = start(client, "rows", "full", steps=100_000, every=100)
        eventually(lambda: len(client.jobs.get(job.name).checkpoints) > 0)
        disk.free = 10**9 - 1
        assert paused(client, job).state_reason == "DISK_FULL"
        told = [event.notice.text for event in client.jobs.events(job.name) if event.notice]
        assert any("1,000 MB must stay free (min_free_disk_bytes)" in text for text in told)
        client.jobs.resume(job.name)
        eventually(lambda: [state for state, _ in states(client, job)].count("PAUSED") == 2)
        disk.free = 2 * 10**9
        eventually(lambda: client.jobs.get(job.name).state is JobState.RUNNING)
        assert client.jobs.get(job.name).attempt == 1
        client.jobs.cancel(job.name)
        finished(client, job)


def test_an_urgent_job_stops_another_which_goes_on_afterwards(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "urgent")
    job = start(client, "urgent", "stopped", steps=100_000, every=50_000)
    eventually(lambda: (p := client.jobs.get(job.name).progress) is not None and p.phase == "training")
    urgent = start(client, "urgent", "urgent", steps=2, priority="HIGH")
    assert finished(client, urgent).check().priority == "HIGH"
    eventually(lambda: client.jobs.get(job.name).state is JobState.RUNNING)
    stopped = client.jobs.get(job.name)
    assert stopped.attempt == 2
    assert stopped.checkpoints
    assert ("QUEUED", "PREEMPTED") in states(client, job)
    client.jobs.cancel(job.name)
    finished(client, job)
