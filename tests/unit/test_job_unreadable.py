"""A record that this build cannot read, because another build has written it, is in nobody else's way."""

from __future__ import annotations

import json
import time

import pytest
from finetuned_service.errors import Internal, JobStateConflict, NotFound
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.room import Room
from finetuned_service.jobs.rows import readable_job
from finetuned_service.jobs.states import JobState, Priority, StateReason
from finetuned_service.jobs.store import JobFilter, JobStore
from finetuned_service.jobs.values import Job
from finetuned_service.storage.pages import PageRequest
from finetuned_service.storage.schema import jobs
from sqlalchemy import func, update
from structlog.testing import capture_logs
from tiny_jobs import NO_REQUEST, TENANT, train_job
from tiny_limits import stored_limits

MINUTE = 60.0


@pytest.fixture
def store(database, tmp_path):
    return JobStore(database, stored_limits(tmp_path))


@pytest.fixture
def queue(database):
    return JobQueue(database)


@pytest.fixture
def spoil(database):
    """Makes a job's record one that cannot be read; what it returns makes it as it was."""

    def turn(job: Job, before: str, after: str) -> None:
        with database.begin() as connection:
            spoilt = func.replace(jobs.c.document, before, after)
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(document=spoilt))

    def made(job: Job):
        turn(job, '"rank":16', '"rank":1600')
        return lambda: turn(job, '"rank":1600', '"rank":16')

    return made


def listed(store: JobStore, size: int = 50) -> list[str]:
    names, page = list[str](), store.list(TENANT, JobFilter(), PageRequest(size))
    while True:
        names += [job.name for job in page.items]
        if not page.next_token:
            return names
        page = store.list(TENANT, JobFilter(), PageRequest.parse(size, page.next_token))


def test_jobs_before_and_behind_it_are_claimed_and_it_waits_for_a_build_that_can_read_it(store, queue, spoil):
    bad = store.create(train_job(), NO_REQUEST)
    good = store.create(train_job(tenant="other"), NO_REQUEST)
    mend = spoil(bad)
    claimed, lease = queue.claim("worker", MINUTE)
    assert claimed.name == good.name
    assert queue.claim("worker", MINUTE) is None
    queue.release(lease, Ending(JobState.SUCCEEDED))
    mend()
    assert queue.claim("worker", MINUTE)[0].name == bad.name


def test_it_is_listed_no_more_and_the_others_are(store, spoil):
    found = [store.create(train_job(), NO_REQUEST) for _ in range(5)]
    spoil(found[2])
    spoil(found[4])
    expected = [found[3].name, found[1].name, found[0].name]
    assert [listed(store, size) for size in (1, 2, 50)] == [expected] * 3


def test_who_names_it_learns_that_it_can_be_deleted(store, spoil):
    job = store.create(train_job(), NO_REQUEST)
    spoil(job)
    for call in (store.get, store.cancel, store.pause, store.resume):
        with pytest.raises(Internal, match=f"record of job {job.id} cannot be read.*DeleteJob removes it"):
            call(TENANT, job.id)
    assert store.using_base("bases/tiny") == [job.name]
    store.delete(TENANT, job.id)
    with pytest.raises(NotFound):
        store.delete(TENANT, job.id)


def test_the_log_says_which_setting_it_is_and_nothing_of_the_tenants(store):
    labels = {"label_weights": {"a patient's name": 1e9}}
    spec = train_job().spec.model_dump() | {"task": "text-classification", "classification": labels}
    document = json.dumps({**json.loads(train_job().model_dump_json()), "spec": spec})
    with capture_logs() as logs:
        assert readable_job("train-1", document) is None
    assert [log["why"] for log in logs] == ["spec.train.classification.label_weights: less_than_equal"]


def test_one_that_a_worker_may_still_hold_is_not_deleted(store, queue, spoil):
    job = store.create(train_job(), NO_REQUEST)
    queue.claim("worker", MINUTE)
    spoil(job)
    with pytest.raises(JobStateConflict, match="is RUNNING; only a finished job can be deleted"):
        store.delete(TENANT, job.id)
    queue.expire("worker")
    store.delete(TENANT, job.id)


def test_the_jobs_of_a_lost_worker_are_given_back_beside_it(store, queue, spoil):
    bad, good = (store.create(train_job(), NO_REQUEST) for _ in range(2))
    for _ in range(2):
        queue.claim("worker", -1.0)
    mend = spoil(bad)
    assert [job.name for job in queue.recover(max_attempts=3)] == [good.name]
    mend()
    assert [job.name for job in queue.recover(max_attempts=3)] == [bad.name]


def test_jobs_that_wait_for_the_disk_are_queued_again_beside_it(store, queue, spoil, tmp_path):
    found = [store.create(train_job(), NO_REQUEST) for _ in range(2)]
    for _ in found:
        _, lease = queue.claim("worker", MINUTE)
        queue.pause(lease, StateReason.DISK_FULL, ())
        queue.release(lease, Ending(JobState.QUEUED))
    spoil(found[0])
    assert [job.name for job in queue.resume(Room(tmp_path, 0))] == [found[1].name]


def test_nobody_makes_room_for_it_and_it_is_not_what_makes_room(store, queue, spoil, monkeypatch):
    high = train_job().model_copy(update={"priority": Priority.HIGH})
    first, second = (store.create(train_job(), NO_REQUEST) for _ in range(2))
    for _ in range(2):
        queue.claim("worker", MINUTE)
    mend = spoil(store.create(high, NO_REQUEST))
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + MINUTE / 2)
    assert queue.preempt(patience_seconds=0.0, slice_seconds=1e9) is None
    mend()
    # The one that was claimed last would be asked.
    spoil(second)
    assert queue.preempt(patience_seconds=0.0, slice_seconds=1e9).name == first.name
    assert queue.preempt(patience_seconds=0.0, slice_seconds=1e9) is None
