"""The dispatcher with real processes: whatever they do, jobs end in a state that says so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetuned_service.errors import InvalidData
from finetuned_service.jobs import room, runner
from finetuned_service.jobs.assignment import ResidentBase
from finetuned_service.jobs.events import StateChanged
from finetuned_service.jobs.runner import JobRunner
from finetuned_service.jobs.specs import Optimization
from finetuned_service.jobs.states import Fault, JobState, Priority, StateReason
from finetuned_service.storage.database import Database
from finetuned_service.storage.pages import PageRequest
from finetuned_service.storage.schema import jobs
from sqlalchemy import update
from structlog.testing import capture_logs
from tiny_jobs import TENANT, quantize_job, train_job
from tiny_worker import Workplace, alive, eventually

SUCCEED = "note,adapter=0.25,finished=0.5"
GIGABYTE = 10**9


@pytest.fixture
def place(tmp_path):
    place = Workplace(tmp_path)
    yield place
    place.close()


def reasons(place, job) -> list[tuple[str, str]]:
    """The states that the job's events tell of, with their reasons."""
    events = place.store.events(TENANT, job.id, 0, 1000)
    return [(e.body.state, e.body.reason) for e in events if isinstance(e.body, StateChanged)]


def left_over(place, job) -> list[str]:
    return sorted(path.name for path in (place.directory / "jobs" / job.id).iterdir())


# A job that works


def test_a_job_becomes_a_version(place):
    job = place.run(train_job(), SUCCEED)
    assert (job.state, job.attempt, job.error) == (JobState.SUCCEEDED, 1, None)
    version = place.current()
    assert (job.result.version, job.result.digest) == (version.name, version.manifest.digest)
    assert (version.manifest.lineage.job, version.manifest.lineage.dataset) == (
        job.name,
        "tenants/acme/datasets/rows",
    )
    assert [metric.value for metric in version.manifest.metrics] == [0.5]
    assert sorted(path.name for path in version.directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert left_over(place, job) == ["log", "task.json"]
    assert reasons(place, job) == [("QUEUED", ""), ("RUNNING", ""), ("SUCCEEDED", "")]


def test_reports_reach_the_record_the_events_and_the_count_of_tokens(place):
    job = place.run(train_job(), "progress=100,progress=250,adapter=0.25,finished=0.5")
    assert (job.progress.tokens, [metric.value for metric in job.metrics]) == (250, [0.5])
    assert place.metrics_page.get_sample_value("finetuned_training_tokens_total") == 350


def test_jobs_run_one_after_another_or_side_by_side(place):
    submitted = [place.submit(train_job(adapter=name)) for name in ("a", "b", "c")]
    with place.dispatcher(f"note,gate,{SUCCEED}", max_running=2):
        eventually(lambda: [place.job(job).state for job in submitted] == ["RUNNING", "RUNNING", "QUEUED"])
        for job in submitted:
            eventually(lambda job=job: place.job(job).state is JobState.RUNNING)
            place.first_pid(job)
            place.open_gate(job)
        for job in submitted:
            place.reaches(job, JobState.SUCCEEDED)


def test_garbage_on_standard_output_goes_to_the_log_and_the_job_goes_on(place):
    job = place.run(train_job(), f"garbage,{SUCCEED},garbage")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    log = (place.directory / "jobs" / job.id / "log").read_bytes()
    assert log.count(b"Loading weights: 100%\n{}\n\xff\xfe\nx") == 2


def test_a_process_that_is_left_behind_does_not_hold_the_job(place):
    job = place.run(train_job(), f"orphan,{SUCCEED}")
    (orphan,) = [int(text.split()[1]) for text in place.notices(job) if text.startswith("orphan")]
    assert (job.state, alive(orphan)) == (JobState.SUCCEEDED, False)


def test_output_of_an_earlier_attempt_is_not_published(place):
    job = place.run(train_job(), "once:adapter=0.75,once:crash,finished=0.5")
    assert (job.state, job.attempt, job.result) == (JobState.FAILED, 2, None)
    assert place.current() is None


# A job that fails


def test_a_reported_failure_is_the_jobs_error(place):
    job = place.run(train_job(), "note,failed,exit=1")
    assert (job.state, job.fault, job.attempt) == (JobState.FAILED, Fault.USER, 1)
    assert job.error["reason"] == InvalidData.reason
    assert job.error["message"] == "row 3 is too long"
    assert place.current() is None
    assert left_over(place, job) == ["log", "task.json"]


def test_a_process_that_is_killed_is_tried_again_where_it_was(place):
    job = place.run(train_job(), f"note,once:crash,{SUCCEED}")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    texts = [text.split(" ", 2)[2] for text in place.notices(job) if text.startswith("pid")]
    assert texts == [f"process {n} attempt {n} rows=0" for n in (1, 2, 2)]
    assert "the job process ended unexpectedly with signal 9" in place.notices(job)
    assert ("QUEUED", "WORKER_LOST") in reasons(place, job)


@pytest.mark.parametrize(
    ("steps", "how"), [("crash", "signal 9"), ("exit=3", "exit code 3"), ("note", "exit code 0")]
)
def test_a_process_that_is_lost_every_time_fails_the_job(place, steps, how):
    job = place.run(train_job(), steps)
    assert (job.state, job.fault, job.attempt) == (JobState.FAILED, Fault.SYSTEM, 3)
    assert job.error["metadata"] == {"attempts": "3"}
    assert f"ended unexpectedly with {how} in attempt 3, for the 3rd time" in job.error["message"]
    assert "micro_batch_rows" in job.error["message"]
    assert sum(how in text for text in place.notices(job)) == 3


def test_a_process_over_its_memory_budget_goes_on_with_half_the_rows_once(place):
    job = place.run(train_job(), "note,over-memory,exit=1")
    assert (job.state, job.fault, job.attempt, job.losses) == (JobState.FAILED, Fault.USER, 2, 0)
    assert (job.micro_batch_rows, job.error["reason"]) == (4, "NO_ROOM")
    assert reasons(place, job) == [
        *[("QUEUED", ""), ("RUNNING", ""), ("QUEUED", "MEMORY")],
        *[("RUNNING", ""), ("FAILED", "")],
    ]
    (told,) = [text for text in place.notices(job) if "From here on" in text]
    assert told.startswith("the job holds 9 MB. From here on 4 rows run at once")
    rows = [text.rpartition(" ")[2] for text in place.notices(job) if text.startswith("pid")]
    assert rows == ["rows=0", "rows=4"]


def test_one_row_at_a_time_cannot_be_halved(place):
    job = place.run(
        train_job(optimization=Optimization(batch_rows=4, micro_batch_rows=1)), "over-memory,exit=1"
    )
    assert (job.state, job.attempt, job.micro_batch_rows) == (JobState.FAILED, 1, 0)


def test_a_process_that_is_killed_again_goes_on_with_half_the_rows(place):
    job = place.run(train_job(), "note,crash")
    assert (job.state, job.fault, job.attempt, job.losses) == (JobState.FAILED, Fault.SYSTEM, 3, 2)
    rows = [text.rpartition(" ")[2] for text in place.notices(job) if text.startswith("pid")]
    assert rows == ["rows=0", "rows=0", "rows=4"]


def test_a_process_that_the_kernel_ended_for_memory_goes_on_with_half_the_rows_at_once(place, monkeypatch):
    counts = iter(range(100))
    monkeypatch.setattr(runner, "count_oom_kills", lambda: next(counts))
    job = place.run(train_job(), f"note,once:crash,{SUCCEED}")
    assert (job.state, job.attempt, job.micro_batch_rows) == (JobState.SUCCEEDED, 2, 4)
    assert "the kernel ends processes when memory runs out" in " ".join(place.notices(job))


def test_a_stop_that_nobody_asked_for_is_not_repeated_for_ever(place, monkeypatch):
    monkeypatch.setattr(runner, "_STRAY_STOP_SECONDS", 0.05)
    job = place.run(train_job(), "exit=75")
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    assert "exit code 75" in job.error["message"]


def test_a_program_that_cannot_be_started_fails_the_job_without_telling_paths(place):
    programs = {"train": ("/nonexistent/program",)}
    job = place.run(train_job(), "", programs=programs)
    assert (job.state, job.fault, job.error["reason"]) == (JobState.FAILED, Fault.SYSTEM, "INTERNAL_FAULT")
    assert "nonexistent" not in str(job.error)
    assert job.error["metadata"]["fault_id"] in job.error["message"]


def test_a_job_whose_dataset_was_deleted_fails_by_name(place):
    submitted = place.submit(train_job())
    place.datasets.delete(TENANT, "rows")
    with place.dispatcher(SUCCEED):
        job = place.reaches(submitted, JobState.FAILED)
    assert (job.fault, job.error["reason"]) == (Fault.USER, "RESOURCE_NOT_FOUND")
    assert job.error["metadata"] == {"resource": "tenants/acme/datasets/rows"}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("adapter=nan,finished=0.5", "INVALID_ADAPTER_FILES"),
        ("finished=0.5", "INTERNAL_FAULT"),
        ("quantized=5/4", "INTERNAL_FAULT"),
    ],
)
def test_what_cannot_be_published_fails_the_job_and_leaves_nothing(place, steps, reason):
    job = place.run(train_job(), steps)
    assert (job.state, job.fault, job.error["reason"]) == (JobState.FAILED, Fault.SYSTEM, reason)
    assert place.current() is None
    assert list((place.directory / "adapters").iterdir()) == []


# Cancelling


def test_a_running_job_is_asked_to_stop(place):
    submitted = place.submit(train_job())
    with place.dispatcher("note,stop"):
        pid = place.first_pid(submitted)
        place.store.cancel(TENANT, submitted.id)
        job = place.reaches(submitted, JobState.CANCELLED)
    assert (job.state_reason, job.attempt, alive(pid)) == (StateReason.USER, 1, False)
    assert left_over(place, job) == ["log", "task.json"]


def test_a_job_that_does_not_stop_is_killed(place):
    submitted = place.submit(train_job())
    with place.dispatcher("stubborn,note,hang", kill_after_seconds=0.05):
        pid = place.first_pid(submitted)
        place.store.cancel(TENANT, submitted.id)
        place.reaches(submitted, JobState.CANCELLED)
    assert not alive(pid)


def test_a_job_cancelled_while_it_was_queued_again_leaves_no_work(place):
    submitted = place.submit(train_job())
    with place.dispatcher("note,stop"):
        place.first_pid(submitted)
    assert "work" in left_over(place, submitted)
    place.store.cancel(TENANT, submitted.id)
    with place.dispatcher(SUCCEED):
        eventually(lambda: left_over(place, submitted) == ["log", "task.json"])
    assert place.job(submitted).state is JobState.CANCELLED


# Pausing


def test_a_running_job_is_paused_and_resumed_in_the_same_place(place):
    submitted = place.submit(train_job())
    with place.dispatcher(f"note,once:stop,{SUCCEED}"):
        pid = place.first_pid(submitted)
        place.store.pause(TENANT, submitted.id)
        paused = place.reaches(submitted, JobState.PAUSED)
        assert (paused.state_reason, paused.attempt, alive(pid)) == (StateReason.USER, 1, False)
        assert "work" in left_over(place, paused)
        place.store.resume(TENANT, submitted.id)
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert job.attempt == 1
    assert place.notices(job)[-1].split(" ", 2)[2] == "process 2 attempt 1 rows=0"
    assert [state for state, _ in reasons(place, job)] == [
        *("QUEUED", "RUNNING", "PAUSING", "PAUSED"),
        *("QUEUED", "RUNNING", "SUCCEEDED"),
    ]


def test_a_job_that_is_cancelled_when_its_pause_is_all_but_done_is_cancelled(place, monkeypatch):
    conclude = JobRunner._conclude

    def cancelled_at_last(self: JobRunner, ended: Any, task: Any, keeper: Any) -> Any:
        ending = conclude(self, ended, task, keeper)
        place.store.cancel(TENANT, keeper.lease.job_id)
        return ending

    monkeypatch.setattr(JobRunner, "_conclude", cancelled_at_last)
    job = place.submit(train_job())
    with place.dispatcher("note,stop"):
        place.first_pid(job)
        place.store.pause(TENANT, job.id)
        eventually(lambda: place.job(job).state.final)
    assert (place.job(job).state, place.job(job).error) == (JobState.CANCELLED, None)


def test_a_job_that_does_not_stop_for_a_pause_in_time_is_killed_and_paused(place):
    submitted = place.submit(train_job())
    with place.dispatcher("stubborn,note,hang", grace_seconds=0.05):
        pid = place.first_pid(submitted)
        place.store.pause(TENANT, submitted.id)
        paused = place.reaches(submitted, JobState.PAUSED)
    assert (paused.attempt, alive(pid)) == (1, False)


def test_a_running_job_makes_room_for_a_higher_priority_and_goes_on_in_the_same_place(place):
    submitted = place.submit(train_job())
    with place.dispatcher(f"note,once:stop,{SUCCEED}", patience_seconds=0.05):
        place.first_pid(submitted)
        urgent = place.submit(train_job(adapter="urgent").model_copy(update={"priority": Priority.HIGH}))
        eventually(lambda: place.job(urgent).state is not JobState.QUEUED)
        assert place.job(submitted).state is JobState.QUEUED
        place.store.cancel(TENANT, urgent.id)
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert (job.attempt, job.losses) == (2, 0)
    assert ("QUEUED", "PREEMPTED") in reasons(place, job)
    assert place.notices(job)[-1].split(" ", 2)[2] == "process 2 attempt 2 rows=0"


# A full disk


class Disk:
    """Says how much is free on it, instead of the one that the test runs on."""

    def __init__(self, monkeypatch) -> None:
        self.free_bytes = 10**12
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=self.free_bytes))


def test_a_process_that_meets_a_full_disk_pauses_the_job_until_there_is_room(place, monkeypatch):
    disk = Disk(monkeypatch)
    disk.free_bytes = 0
    submitted = place.submit(train_job())
    with place.dispatcher(f"note,once:suspended,once:exit=1,{SUCCEED}"):
        paused = place.reaches(submitted, JobState.PAUSED)
        assert (paused.state_reason, paused.error, paused.attempt) == (StateReason.DISK_FULL, None, 1)
        assert "the disk is full" in place.notices(paused)
        disk.free_bytes = 10**12
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert job.attempt == 1


@pytest.mark.parametrize(("told", "wanted"), [("", 3 * GIGABYTE), (f"={16 * GIGABYTE}", 16 * GIGABYTE)])
def test_a_full_disk_is_not_tried_again_before_it_has_what_the_job_wants(place, monkeypatch, told, wanted):
    disk = Disk(monkeypatch)
    disk.free_bytes = 3 * GIGABYTE
    submitted = place.submit(train_job())
    settings = {"min_free_disk_bytes": GIGABYTE}
    program = f"once:suspended{told},once:exit=1,{SUCCEED}"
    with place.dispatcher(program, **settings):
        paused = place.reaches(submitted, JobState.PAUSED)
    # Two are to spare; where nobody knows what it would have taken, it wants one more than that.
    assert paused.disk_bytes_wanted == wanted
    disk.free_bytes = wanted + GIGABYTE - 1
    assert place.queue.resume(room.Room(place.directory, GIGABYTE)) == []
    disk.free_bytes += 1
    with place.dispatcher(program, **settings):
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert [state for state, _ in reasons(place, job)].count("PAUSED") == 1


def test_a_pause_whose_checkpoint_has_no_room_says_so(place, monkeypatch):
    Disk(monkeypatch)
    submitted = place.submit(train_job())
    with place.dispatcher("note,until-stop,suspended=7,exit=1"):
        place.first_pid(submitted)
        place.store.pause(TENANT, submitted.id)
        paused = place.reaches(submitted, JobState.PAUSED)
    assert (paused.state_reason, place.notices(paused)[-1]) == (StateReason.USER, "the disk is full")


def test_a_job_that_has_measured_itself_waits_to_be_told_to_begin(place):
    submitted = place.submit(train_job())
    with place.dispatcher(f"note,once:estimated=120,once:paused,once:exit=75,{SUCCEED}"):
        waiting = place.reaches(submitted, JobState.PAUSED)
        assert (waiting.state_reason, waiting.attempt) == (StateReason.ESTIMATED, 1)
        assert waiting.estimate.memory_bytes == 120
        assert "it waits" in place.notices(waiting)
        place.store.resume(TENANT, waiting.id)
        assert place.reaches(submitted, JobState.SUCCEEDED).estimate == waiting.estimate


def test_jobs_are_paused_before_the_disk_is_full_and_go_on_at_twice_the_room(place, monkeypatch):
    disk = Disk(monkeypatch)
    submitted, later = place.submit(train_job()), place.submit(train_job(adapter="later"))
    settings = {"min_free_disk_bytes": 2**30}
    with place.dispatcher(f"note,once:stop,{SUCCEED}", **settings):
        pid = place.first_pid(submitted)
        disk.free_bytes = 2**30 - 1
        paused = [place.reaches(job, JobState.PAUSED) for job in (submitted, later)]
        assert [(job.state_reason, job.attempt) for job in paused] == [(StateReason.DISK_FULL, 1)] * 2
        assert not alive(pid)
        assert "1,074 MB left, and 1,074 MB must stay free" in place.notices(submitted)[-1]
        disk.free_bytes = 2**31
        place.store.pause(TENANT, later.id)
        assert place.reaches(submitted, JobState.SUCCEEDED).attempt == 1
        assert place.job(later).state_reason in {StateReason.USER, StateReason.NONE}


def test_a_disk_without_room_for_the_task_pauses_the_job(place):
    """/dev/full fails as every file of a full disk does."""
    submitted = place.submit(train_job())

    class FullDisk:
        resident = ResidentBase

        def task_for(self, job, directory):
            directory.mkdir(parents=True, exist_ok=True)
            with Path("/dev/full").open("wb", buffering=0) as file:
                file.write(b"task")

    assignments, place.assignments = place.assignments, FullDisk()
    with place.dispatcher(SUCCEED):
        eventually(lambda: "the server's disk has no room" in "".join(place.notices(submitted)))
        place.store.pause(TENANT, submitted.id)
        place.reaches(submitted, JobState.PAUSED)
    place.assignments = assignments
    place.store.resume(TENANT, submitted.id)
    with place.dispatcher(SUCCEED):
        assert place.reaches(submitted, JobState.SUCCEEDED).attempt == 1


# Stopping the worker


def test_a_stopped_worker_gives_its_jobs_back_and_the_next_goes_on_in_the_same_place(place):
    submitted = place.submit(train_job())
    steps = f"note,once:stop,{SUCCEED}"
    with place.dispatcher(steps):
        place.first_pid(submitted)
    job = place.job(submitted)
    assert (job.state, job.state_reason, job.attempt) == (JobState.QUEUED, StateReason.SHUTDOWN, 1)
    assert (place.directory / "jobs" / job.id / "work" / "checkpoint").exists()
    with place.dispatcher(steps):
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert job.attempt == 1
    assert [text.split(" ", 2)[2] for text in place.notices(job)][-1] == "process 2 attempt 1 rows=0"


def test_a_job_that_does_not_stop_in_time_is_killed_without_losing_an_attempt(place):
    submitted = place.submit(train_job())
    with place.dispatcher("stubborn,note,hang", grace_seconds=0.05):
        pid = place.first_pid(submitted)
    job = place.job(submitted)
    assert (job.state, job.state_reason, job.attempt) == (JobState.QUEUED, StateReason.SHUTDOWN, 1)
    assert not alive(pid)


def test_a_stop_that_reaches_the_process_first_is_the_same_stop(place):
    submitted = place.submit(train_job())
    with place.dispatcher("note,stop"):
        pid = place.first_pid(submitted)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid))
    job = place.job(submitted)
    assert (job.state_reason, job.attempt) == (StateReason.SHUTDOWN, 1)


def test_an_interrupt_at_the_terminal_does_not_reach_the_process(place):
    submitted = place.submit(train_job())
    with place.dispatcher("note,stop"):
        pid = place.first_pid(submitted)
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == os.getsid(0)


def test_jobs_that_a_worker_held_before_a_crash_are_taken_at_once(place):
    submitted = place.submit(train_job())
    place.queue.claim("worker", 3600.0)
    with place.dispatcher(SUCCEED):
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert job.attempt == 2


def test_jobs_of_another_worker_are_left_alone(place):
    submitted = place.submit(train_job())
    place.queue.claim("another", 3600.0)
    marker = place.submit(train_job(adapter="marker"))
    with place.dispatcher(SUCCEED):
        place.reaches(marker, JobState.SUCCEEDED)
    assert place.job(submitted).state is JobState.RUNNING


# The lease and the store


def test_a_process_whose_job_was_taken_over_is_killed_and_nothing_is_published(place):
    submitted = place.submit(train_job())
    with place.dispatcher(f"stubborn,note,gate,{SUCCEED}") as dispatcher:
        pid = place.first_pid(submitted)
        with place.database.begin() as connection:
            thief = {"lease_owner": "thief", "lease_epoch": jobs.c.lease_epoch + 1}
            connection.execute(update(jobs).values(lease_until=time.time() + 3600.0, **thief))
        eventually(lambda: not alive(pid))
        eventually(lambda: not any(watcher.is_alive() for watcher in dispatcher._watchers))
    job = place.job(submitted)
    assert (job.state, job.attempt, place.current()) == (JobState.RUNNING, 1, None)


def test_a_store_that_fails_for_a_moment_costs_nothing(tmp_path):
    place = Workplace(tmp_path, busy_timeout_seconds=0.01)
    submitted = place.submit(train_job())
    blocker = Database(place.url)
    with place.dispatcher(f"note,gate,{SUCCEED}"):
        pid = place.first_pid(submitted)
        with blocker.begin():
            place.open_gate(submitted)
            eventually(lambda: not alive(pid))
            assert place.job(submitted).state is JobState.RUNNING
        job = place.reaches(submitted, *(state for state in JobState if state.final))
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert (place.current().version, len(place.pids(job))) == (1, 2)
    blocker.close()
    place.close()


def test_a_store_that_fails_for_longer_than_the_lease_ends_the_process(tmp_path):
    place = Workplace(tmp_path, busy_timeout_seconds=0.01)
    submitted = place.submit(train_job())
    blocker = Database(place.url)
    with place.dispatcher(f"note,once:hang,{SUCCEED}", lease_seconds=2.0):
        pid = place.first_pid(submitted)
        with blocker.begin():
            eventually(lambda: not alive(pid))
            assert place.job(submitted).state is JobState.RUNNING
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert (job.attempt, place.current().version) == (2, 1)
    blocker.close()
    place.close()


def test_a_round_that_fails_is_not_the_last(place, monkeypatch):
    submitted = place.submit(train_job())
    with monkeypatch.context() as broken, capture_logs() as logs:
        broken.setattr(place.queue, "recover", None)
        with place.dispatcher(SUCCEED):
            eventually(lambda: [log["event"] for log in logs].count("dispatcher_round_failed") >= 2)
            broken.undo()
            assert place.reaches(submitted, JobState.SUCCEEDED).attempt == 1


def test_a_damaged_record_stops_no_round_and_is_told_once(place):
    damaged, other = place.submit(train_job()), place.submit(train_job())

    def write_document(document: str) -> None:
        with place.database.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == damaged.id).values(document=document))

    write_document("damaged")
    with capture_logs() as logs, place.dispatcher(SUCCEED):
        assert place.reaches(other, JobState.SUCCEEDED).attempt == 1
        write_document(damaged.model_dump_json())
        assert place.reaches(damaged, JobState.SUCCEEDED).attempt == 1
    told = [log["event"] for log in logs]
    assert told.count("job_record_not_readable") == 1
    assert {log.get("why") for log in logs} == {None, ": json_invalid"}
    assert "dispatcher_round_failed" not in told


def test_two_workers_share_the_jobs(place):
    second = Workplace(place.directory)
    submitted = [place.submit(train_job(adapter=f"a{i}")) for i in range(6)]
    with place.dispatcher(SUCCEED, owner="first"), second.dispatcher(SUCCEED, owner="second"):
        for job in submitted:
            place.reaches(job, JobState.SUCCEEDED)
    assert {place.job(job).attempt for job in submitted} == {1}
    assert len(place.registry.list(TENANT, PageRequest()).items) == 6
    second.close()


# Quantize


def test_a_quantized_base_belongs_to_the_tenant(place):
    job = place.run(quantize_job(), "base=0.125,quantized=5/4")
    assert (job.state, job.result.base) == (JobState.SUCCEEDED, "tenants/acme/bases/tiny-int8")
    (manifest,) = [m for m in place.bases.list(TENANT) if m.name != "bases/tiny"]
    assert (manifest.name, manifest.digest) == (job.result.base, job.result.digest)


def test_a_base_that_lost_too_much_fails_the_job_with_its_report(place):
    job = place.run(quantize_job(max_quality_drop=0.5), "quantized=10/4")
    assert (job.state, job.fault, job.error["reason"]) == (JobState.FAILED, Fault.USER, "QUALITY_GATE_FAILED")
    assert (job.result.base, job.result.report.quantized_perplexity) == ("", 10.0)
    assert job.error["metadata"] == {"perplexity_rise": "1.500000", "max_quality_drop": "0.500000"}
    assert [m.name for m in place.bases.list(TENANT)] == ["bases/tiny"]


def test_a_base_of_that_name_made_meanwhile_is_not_taken_for_the_result(place):
    first = place.run(quantize_job(), "base=0.125,quantized=5/4")
    again = place.run(quantize_job(), "base=0.125,quantized=5/4")
    assert (again.state, again.result) == (JobState.SUCCEEDED, first.result)
    other = place.run(quantize_job(), "base=0.5,quantized=5/4")
    assert (other.state, other.fault, other.error["reason"]) == (
        JobState.FAILED,
        Fault.USER,
        "RESOURCE_EXISTS",
    )
    (kept,) = [m for m in place.bases.list(TENANT) if m.name != "bases/tiny"]
    assert kept.digest == first.result.digest
