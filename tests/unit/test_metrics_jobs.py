"""What metrics tell of jobs: a worker's own counts, and the store's census."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from finetuned_service.errors import Unavailable
from finetuned_service.jobs.census import take_census
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobStore
from finetuned_service.metrics import serve, watch_data_directory, watch_processes
from finetuned_service.metrics.jobs import watch_store
from finetuned_service.storage.schema import job_events
from metrics_page import promtool, scrape
from prometheus_client import CollectorRegistry
from sqlalchemy import update
from tiny_jobs import NO_REQUEST, TENANT, quantize_job, train_job
from tiny_limits import stored_limits
from tiny_worker import Workplace

MINUTE = 60.0


@pytest.fixture
def place(tmp_path):
    place = Workplace(tmp_path)
    yield place
    place.close()


@pytest.fixture
def limits(tmp_path):
    return stored_limits(tmp_path)


def figure(place: Workplace, name: str, **labels: str) -> float:
    return place.metrics_page.get_sample_value(name, labels) or 0.0


# One worker


def test_a_job_that_succeeds(place):
    zero = {"kind": "train", "state": "failed", "fault": "system"}
    assert place.metrics_page.get_sample_value("finetuned_jobs_ended_total", zero) == 0, "there, and zero"
    place.run(train_job(), "progress=100,progress=250,adapter=0.25,finished=0.5")
    assert figure(place, "finetuned_job_attempts_total", kind="train") == 1
    assert figure(place, "finetuned_jobs_ended_total", kind="train", state="succeeded", fault="") == 1
    assert figure(place, "finetuned_job_queue_seconds_count", kind="train") == 1
    assert figure(place, "finetuned_job_run_seconds_count", kind="train") == 1
    assert figure(place, "finetuned_training_tokens_total") == 350
    assert figure(place, "finetuned_training_step_seconds_count") == 2


def test_how_far_estimates_were_off_is_counted(place):
    job = place.run(train_job(), "estimated=120,used=100,adapter=0.25,finished=0.5")
    assert job.usage.memory_bytes == 100
    assert job.usage.duration_seconds > 0
    name, memory = "finetuned_job_estimate_error_ratio", {"kind": "train", "quantity": "memory"}
    assert figure(place, f"{name}_sum", **memory) == pytest.approx(0.2)
    assert figure(place, f"{name}_count", kind="train", quantity="duration") == 1
    place.run(train_job(), "estimated=120,used=100,failed")
    assert figure(place, f"{name}_count", **memory) == 1, "a failed job has not taken what it would"


def test_a_lost_process_is_a_preemption_and_the_last_a_failure_of_ours(place):
    place.run(train_job(), "progress=100,crash")
    assert figure(place, "finetuned_job_attempts_total", kind="train") == 3
    assert figure(place, "finetuned_job_preemptions_total", kind="train", reason="worker_lost") == 2
    assert figure(place, "finetuned_jobs_ended_total", kind="train", state="failed", fault="system") == 1
    assert figure(place, "finetuned_job_queue_seconds_count", kind="train") == 1
    assert figure(place, "finetuned_training_tokens_total") == 3 * 100, "trained again is trained, too"


def test_what_the_caller_did_wrong_is_not_a_failure_of_ours(place):
    place.run(train_job(), "failed,exit=1")
    assert figure(place, "finetuned_jobs_ended_total", kind="train", state="failed", fault="user") == 1
    assert figure(place, "finetuned_jobs_ended_total", kind="train", state="failed", fault="system") == 0


def test_tokens_that_a_quantization_measures_are_not_trained_on(place):
    place.run(quantize_job(), "measured=500,base=0.5,quantized=8/7")
    assert figure(place, "finetuned_jobs_ended_total", kind="quantize", state="succeeded", fault="") == 1
    assert figure(place, "finetuned_training_tokens_total") == 0


def test_processes_of_running_jobs_are_known_until_they_end(place):
    job = place.submit(train_job())
    with place.dispatcher("note,gate,adapter=0.25,finished=0.5"):
        pid = place.first_pid(job)
        assert place.metrics.process_ids() == [pid]
        assert figure(place, "finetuned_job_processes") == 1
        place.open_gate(job)
        place.reaches(job, JobState.SUCCEEDED)
    assert place.metrics.process_ids() == []


def test_a_job_of_a_lost_worker_is_counted_by_the_one_that_finds_it(place):
    job = place.submit(train_job())
    place.queue.claim("another worker", 0.0)
    with place.dispatcher("adapter=0.25,finished=0.5"):
        place.reaches(job, JobState.SUCCEEDED)
    assert figure(place, "finetuned_job_preemptions_total", kind="train", reason="worker_lost") == 1


def test_a_job_given_back_at_shutdown_is_a_preemption(place):
    job = place.submit(train_job())
    with place.dispatcher("note,stop"):
        place.first_pid(job)
    assert figure(place, "finetuned_job_preemptions_total", kind="train", reason="shutdown") == 1


# The store


def test_the_census_tells_every_kind_and_state(database, limits):
    store, queue = JobStore(database, limits), JobQueue(database)
    for _ in range(3):
        store.create(train_job(), NO_REQUEST)
    queue.claim("worker", MINUTE)
    store.create(quantize_job(), NO_REQUEST)
    found = take_census(database).jobs
    assert {key: number for key, number in found.items() if number} == {
        ("train", JobState.QUEUED): 2,
        ("train", JobState.RUNNING): 1,
        ("quantize", JobState.QUEUED): 1,
    }
    assert len(found) == 2 * len(JobState)


def make_older(database, job, seconds: float) -> None:
    with database.begin() as connection:
        connection.execute(
            update(job_events).where(job_events.c.job_id == job.id).values(time=job_events.c.time - seconds)
        )


def test_ages_are_of_the_oldest_and_begin_again_with_each_event(database, limits):
    store, queue = JobStore(database, limits), JobQueue(database)
    assert (take_census(database).queue_age_seconds, take_census(database).silent_seconds) == (0.0, 0.0)
    first = store.create(train_job(), NO_REQUEST)
    second = store.create(train_job(), NO_REQUEST)
    make_older(database, first, 500.0)
    make_older(database, second, 300.0)
    assert 500.0 <= take_census(database).queue_age_seconds < 500.0 + MINUTE
    _, lease = queue.claim("worker", MINUTE)
    assert 300.0 <= take_census(database).queue_age_seconds < 300.0 + MINUTE
    make_older(database, first, 900.0)
    assert 900.0 <= take_census(database).silent_seconds < 900.0 + MINUTE
    queue.record(lease, lambda job: job, [Notice(text="still here")])
    assert take_census(database).silent_seconds < MINUTE
    queue.release(lease, Ending(JobState.QUEUED))
    store.cancel(TENANT, second.id)
    census = take_census(database)
    assert census.queue_age_seconds < MINUTE, "given back just now"
    assert census.silent_seconds == 0.0


def test_a_store_that_does_not_answer_shows_and_does_not_take_the_page_with_it():
    def census():
        raise Unavailable("gone")

    page = CollectorRegistry()
    watch_store(page, census)
    assert [(family.name, family.samples[0].value) for family in page.collect()] == [
        ("finetuned_store_up", 0)
    ]


# A worker apart from a server


def test_a_worker_has_a_page_of_its_own(place):
    page = place.metrics_page
    watch_data_directory(page, place.directory)
    watch_processes(page, {"worker": lambda: [os.getpid()], "jobs": lambda: [ended_process()]})
    server = serve(page, "127.0.0.1:0")
    try:
        found = scrape(f"http://127.0.0.1:{server.server_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
    assert promtool("check", "metrics", stdin=found) == ""
    assert 'finetuned_process_resident_bytes{process="jobs"} 0.0' in found
    assert figure(place, "finetuned_process_resident_bytes", process="worker") > 0
    assert figure(place, "finetuned_database_bytes") > 0
    assert figure(place, "finetuned_data_disk_size_bytes") > figure(place, "finetuned_data_disk_free_bytes")


def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid
