"""The durable store of jobs: callers' side, workers' side, and what neither can do to the other."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from finetuned_service.errors import (
    Internal,
    InvalidField,
    JobStateConflict,
    NotFound,
    OutOfRange,
    QuotaExceeded,
    RequestIdReused,
)
from finetuned_service.jobs.census import take_census
from finetuned_service.jobs.events import Estimate, EstimateBasis, Notice, Progress, StateChanged
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.record import apply_reports
from finetuned_service.jobs.room import Room
from finetuned_service.jobs.rows import Lease, LeaseLost
from finetuned_service.jobs.states import Fault, JobState, StateReason
from finetuned_service.jobs.store import JobFilter, JobStore
from finetuned_service.jobs.task import Estimated
from finetuned_service.jobs.values import EvaluationSample, Job
from finetuned_service.rpc.convert.jobs import job_to_proto
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import MAX_PAGE_BYTES, PageRequest
from finetuned_service.storage.schema import job_events, jobs
from sqlalchemy import func, select, update
from tiny_jobs import NO_REQUEST, TENANT, quantize_job, train_job
from tiny_limits import stored_limits

MINUTE = 60.0
GIGABYTE = 10**9


@pytest.fixture
def store(database, tmp_path):
    return JobStore(database, stored_limits(tmp_path))


@pytest.fixture
def queue(database):
    return JobQueue(database)


@pytest.fixture
def job(store) -> Job:
    return store.create(train_job(), NO_REQUEST)


@pytest.fixture
def lease(job, queue) -> Lease:
    """On the one job, which is RUNNING."""
    return queue.claim("worker", MINUTE)[1]


def force_state(database, job: Job, state: JobState) -> None:
    """Put a job into a state that no call of this build reaches."""
    with database.begin() as connection:
        document = connection.scalar(select(jobs.c.document).where(jobs.c.id == job.id))
        changed = Job.model_validate_json(document).model_copy(update={"state": state})
        connection.execute(
            update(jobs).where(jobs.c.id == job.id).values(state=state, document=changed.model_dump_json())
        )


def states_told(store, job: Job) -> list[tuple[JobState, StateReason, int]]:
    """The states that the job's events tell of, with reason and attempt."""
    return [
        (event.body.state, event.body.reason, event.body.attempt)
        for event in store.events(TENANT, job.id, 0, 1000)
        if isinstance(event.body, StateChanged)
    ]


def with_free(free_bytes: int) -> Room:
    """The room of a disk with so much free, of which a gigabyte must stay so."""
    return Room(Path("jobs"), GIGABYTE, lambda _: free_bytes)


def unchanged(job: Job) -> Job:
    return job


# Creating and reading


def test_a_new_job_is_queued_under_a_fresh_name(store):
    first, second = store.create(train_job(), NO_REQUEST), store.create(quantize_job(), NO_REQUEST)
    assert (first.state, first.attempt, first.last_event) == (JobState.QUEUED, 1, 1)
    assert first.id.startswith("train-")
    assert second.id.startswith("quantize-")
    assert store.get(TENANT, first.id) == first
    assert states_told(store, first) == [(JobState.QUEUED, StateReason.NONE, 1)]


def test_a_page_of_large_jobs_ends_before_it_is_too_large_for_a_message(store):
    """34 jobs with 100 samples of 20 kB each, as older builds have stored them, were more than a message may have."""
    samples = tuple(EvaluationSample(prompt="é" * 10_000, expected="up") for _ in range(100))
    large = train_job().model_copy(update={"samples": samples})
    made = [store.create(large, NO_REQUEST).name for _ in range(20)]
    found, sizes, page = list[str](), list[int](), store.list(TENANT, JobFilter(), PageRequest(1000))
    while True:
        found += [job.name for job in page.items]
        sizes.append(sum(job_to_proto(job).ByteSize() for job in page.items))
        if not page.next_token:
            break
        page = store.list(TENANT, JobFilter(), PageRequest.parse(1000, page.next_token))
    assert found == made[::-1]
    assert len(sizes) == 3
    assert MAX_PAGE_BYTES / 2 < sizes[0] <= MAX_PAGE_BYTES


def test_jobs_of_other_tenants_are_not_found(store, job):
    for call in (store.get, store.cancel, store.last_event):
        with pytest.raises(NotFound, match=f"tenants/other/jobs/{job.id}"):
            call("other", job.id)
    with pytest.raises(NotFound):
        store.events("other", job.id, 0, 10)
    assert store.get(TENANT, job.id).state is JobState.QUEUED


def test_a_repeated_request_gives_the_job_as_it_is_now(store):
    request = RequestKey.of(TENANT, "r1", b"body")
    assert store.made_by(request) is None
    made = store.create(train_job(), request)
    cancelled = store.cancel(TENANT, made.id)
    assert store.create(train_job(), request) == cancelled
    assert store.made_by(request) == cancelled
    assert len(store.list(TENANT, JobFilter(), PageRequest()).items) == 1


def test_another_body_under_the_same_request_id_is_refused(store):
    store.create(train_job(), RequestKey.of(TENANT, "r1", b"body"))
    other = RequestKey.of(TENANT, "r1", b"else")
    for call in (lambda: store.create(train_job(), other), lambda: store.made_by(other)):
        with pytest.raises(RequestIdReused):
            call()


def test_requests_at_the_same_time_make_one_job(store):
    request = RequestKey.of(TENANT, "r1", b"body")
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.create(train_job(), request).id)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(set(made))) == (6, 1)


def test_a_tenant_has_only_so_many_unfinished_jobs(tmp_path, database):
    store = JobStore(database, stored_limits(tmp_path, unfinished_jobs=2))
    request = RequestKey.of(TENANT, "r1", b"body")
    first = store.create(train_job(), request)
    store.create(train_job(), NO_REQUEST)
    for call in (lambda: store.create(train_job(), NO_REQUEST), lambda: store.refuse_full(train_job())):
        with pytest.raises(QuotaExceeded, match="2 jobs are used and 1 more wanted; allowed: 2") as refusal:
            call()
        assert refusal.value.retry_after_seconds == 30.0
        assert refusal.value.metadata == {
            "limit": "unfinished_jobs",
            "subject": "tenants/acme",
            "used": "2",
            "allowed": "2",
        }
    assert store.create(train_job(), request) == first
    store.create(train_job(tenant="other"), NO_REQUEST)
    store.cancel(TENANT, first.id)
    store.refuse_full(train_job())
    assert store.create(train_job(), NO_REQUEST).state is JobState.QUEUED


def test_everything_survives_a_restart(url, tmp_path, store, queue, job, lease):
    loss = Progress(phase="training", step=1, loss=math.nan)
    before = queue.record(lease, lambda job: job.model_copy(update={"progress": loss}), [loss])
    again = Database(url)
    after = JobStore(again, stored_limits(tmp_path)).get(TENANT, job.id)
    assert after.model_dump_json() == before.model_dump_json()
    assert math.isnan(after.progress.loss)
    assert [
        event.number for event in JobStore(again, stored_limits(tmp_path)).events(TENANT, job.id, 0, 10)
    ] == [1, 2, 3]
    assert JobQueue(again).renew(lease, MINUTE).state is JobState.RUNNING
    again.close()


# Lists


def test_jobs_come_newest_first_in_pages(store):
    made = [store.create(train_job(), NO_REQUEST).id for _ in range(5)]
    store.create(train_job(tenant="other"), NO_REQUEST)
    pages, token = [], ""
    while True:
        page = store.list(TENANT, JobFilter(), PageRequest.parse(2, token))
        pages.append([job.id for job in page.items])
        token = page.next_token
        if not token:
            break
    assert pages == [[made[4], made[3]], [made[2], made[1]], [made[0]]]


def test_a_page_token_tells_nothing_of_other_tenants_and_is_of_no_use_to_them(store):
    for _ in range(3):
        store.create(train_job(), NO_REQUEST)
    tokens = {store.list(TENANT, JobFilter(), PageRequest(2)).next_token}
    newest = store.create(train_job(tenant="other"), NO_REQUEST)
    tokens.add(store.list(TENANT, JobFilter(), PageRequest(2)).next_token)
    assert len(tokens) == 1
    token = PageRequest.parse(2, tokens.pop())
    assert str(newest.id) not in token.after
    with pytest.raises(InvalidField, match="page_token"):
        store.list("other", JobFilter(), token)


def test_jobs_are_filtered_by_state_kind_and_adapter(store, queue):
    redact = store.create(train_job(adapter="redact"), NO_REQUEST)
    ops = store.create(train_job(adapter="ops"), NO_REQUEST)
    quantize = store.create(quantize_job(), NO_REQUEST)
    store.cancel(TENANT, quantize.id)
    queue.claim("worker", MINUTE)

    def found(**wanted) -> list[str]:
        return [job.id for job in store.list(TENANT, JobFilter(**wanted), PageRequest()).items]

    assert found(states=(JobState.RUNNING,)) == [redact.id]
    assert found(states=(JobState.QUEUED, JobState.CANCELLED)) == [quantize.id, ops.id]
    assert found(kind="train") == [ops.id, redact.id]
    assert found(kind="quantize", states=(JobState.QUEUED,)) == []
    assert found(adapter="ops") == [ops.id]


def users_of(database, *datasets: str, tenant: str = TENANT) -> list[str]:
    """The unfinished job that uses each of the datasets, or ''."""
    with database.read() as connection:
        return [JobStore.uses_dataset(connection, tenant, dataset) for dataset in datasets]


def test_what_unfinished_jobs_need_is_known(store, database):
    job = store.create(train_job(eval_dataset="tenants/acme/datasets/held-out"), NO_REQUEST)
    quantize = store.create(quantize_job(dataset="tenants/acme/datasets/text"), NO_REQUEST)
    users = users_of(database, "rows", "held-out", "text", "row")
    assert users == [job.name, job.name, quantize.name, ""]
    assert users_of(database, "rows", tenant="other") == [""]
    assert store.using_base("bases/tiny") == [job.name, quantize.name]
    assert store.using_base("bases/other") == []
    for finished in (job, quantize):
        store.cancel(TENANT, finished.id)
    assert (users_of(database, "rows"), store.using_base("bases/tiny")) == ([""], [])


# Claims and leases


def test_jobs_are_claimed_in_the_order_of_their_creation(store, queue):
    made = [store.create(train_job(tenant=tenant), NO_REQUEST).id for tenant in ("b", "a", "c")]
    claimed = [queue.claim(f"worker-{i}", MINUTE) for i in range(3)]
    assert [job.id for job, _ in claimed] == made
    assert {job.state for job, _ in claimed} == {JobState.RUNNING}
    assert queue.claim("worker", MINUTE) is None


def test_a_job_given_back_keeps_its_place_and_its_start(store, queue):
    first = store.create(train_job(), NO_REQUEST)
    store.create(train_job(), NO_REQUEST)
    claimed, lease = queue.claim("worker", MINUTE)
    queue.release(lease, Ending(JobState.QUEUED, StateReason.SHUTDOWN))
    again, _ = queue.claim("worker", MINUTE)
    assert (again.id, again.start_time, again.attempt) == (first.id, claimed.start_time, 1)
    assert states_told(store, first) == [
        (JobState.QUEUED, StateReason.NONE, 1),
        (JobState.RUNNING, StateReason.NONE, 1),
        (JobState.QUEUED, StateReason.SHUTDOWN, 1),
        (JobState.RUNNING, StateReason.NONE, 1),
    ]


def test_a_new_attempt_forgets_the_error_of_the_one_before(store, queue, job, lease):
    wire = Internal("gone").to_wire()
    failed = queue.record(lease, lambda j: j.model_copy(update={"error": wire, "fault": Fault.SYSTEM}), [])
    assert failed.error is not None
    queue.release(lease, Ending(JobState.QUEUED, StateReason.WORKER_LOST))
    again, _ = queue.claim("worker", MINUTE)
    assert (again.error, again.fault, again.attempt) == (None, None, 2)


def test_a_job_that_its_user_cancels_ends_without_an_error(store, queue, job, lease):
    wire = Internal("gone").to_wire()
    queue.record(lease, lambda j: j.model_copy(update={"error": wire, "fault": Fault.SYSTEM}), [])
    store.cancel(TENANT, job.id)
    # Given back as queued, it ends as what it is then.
    ended = queue.release(lease, Ending(JobState.QUEUED, StateReason.SHUTDOWN))
    assert (ended.state, ended.error, ended.fault) == (JobState.CANCELLED, None, None)


def test_a_worker_whose_lease_was_taken_over_can_write_nothing(store, queue, job, lease):
    queue.expire("worker")
    assert len(queue.recover(max_attempts=3)) == 1
    _, new = queue.claim("worker", MINUTE)
    assert new.epoch > lease.epoch
    before = store.get(TENANT, job.id)
    for write in (
        lambda: queue.renew(lease, MINUTE),
        lambda: queue.record(lease, unchanged, [Notice(text="late")]),
        lambda: queue.release(lease, Ending(JobState.SUCCEEDED)),
        lambda: queue.release(Lease(job.id, "other", new.epoch), Ending(JobState.SUCCEEDED)),
        lambda: queue.renew(Lease("absent", "worker", 1), MINUTE),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.get(TENANT, job.id) == before
    assert queue.release(new, Ending(JobState.SUCCEEDED)).state is JobState.SUCCEEDED


def test_a_worker_that_was_recovered_but_not_replaced_can_write_nothing(store, queue, job, lease):
    queue.expire("worker")
    queue.recover(max_attempts=3)
    for write in (
        lambda: queue.renew(lease, MINUTE),
        lambda: queue.release(lease, Ending(JobState.SUCCEEDED)),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.get(TENANT, job.id).state is JobState.QUEUED


def test_a_released_lease_is_over(queue, lease):
    queue.release(lease, Ending(JobState.SUCCEEDED))
    with pytest.raises(LeaseLost):
        queue.record(lease, unchanged, [])


def test_a_renewed_lease_is_not_recovered(queue, lease):
    queue.expire("worker")
    queue.renew(lease, MINUTE)
    assert len(queue.recover(max_attempts=3)) == 0
    queue.expire("another")
    assert len(queue.recover(max_attempts=3)) == 0


def test_a_lease_that_runs_out_gives_the_job_back_for_another_attempt(store, queue, job):
    queue.claim("worker", -1.0)
    assert len(queue.recover(max_attempts=3)) == 1
    assert states_told(store, job)[-1] == (JobState.QUEUED, StateReason.WORKER_LOST, 2)
    assert store.get(TENANT, job.id).attempt == 2
    assert len(queue.recover(max_attempts=3)) == 0


def test_a_job_that_loses_every_worker_fails(store, queue, job):
    for _ in range(3):
        queue.claim("worker", -1.0)
        queue.recover(max_attempts=3)
    failed = store.get(TENANT, job.id)
    assert (failed.state, failed.state_reason) == (JobState.FAILED, StateReason.WORKER_LOST)
    assert (failed.attempt, failed.fault, failed.error["reason"]) == (3, Fault.SYSTEM, "INTERNAL_FAULT")
    assert "attempt 3" in failed.error["message"]
    assert failed.end_time is not None


def test_workers_in_two_processes_never_get_the_same_job(database, store, url):
    made = {store.create(train_job(), NO_REQUEST).id for _ in range(12)}
    script = """if True:
        import json, sys
        from finetuned_service.jobs.queue import Ending, JobQueue
        from finetuned_service.jobs.states import (JobState)
        from finetuned_service.storage.database import Database
        queue = JobQueue(Database(sys.argv[1]))
        print("ready", flush=True)
        sys.stdin.readline()
        claimed = []
        while (found := queue.claim(sys.argv[2], 60.0)) is not None:
            claimed.append(found[0].id)
            queue.release(found[1], Ending(JobState.SUCCEEDED))
        print(json.dumps(claimed))
        """
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    claimed = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sorted(itertools.chain(*claimed)) == sorted(made)
    assert take_census(database).jobs["train", JobState.SUCCEEDED] == 12


# Ending


def test_what_a_release_publishes_and_the_state_are_one(store, queue, job, lease, database):
    def publish(connection, current: Job) -> Job:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(dataset_ids="published"))
        return current.model_copy(update={"display_name": "published"})

    def fail(connection, current: Job) -> Job:
        publish(connection, current)
        raise LookupError

    with pytest.raises(LookupError):
        queue.release(lease, Ending(JobState.SUCCEEDED, bodies=(Notice(text="done"),), also=fail))
    assert (store.get(TENANT, job.id).state, users_of(database, "rows")) == (JobState.RUNNING, [job.name])
    assert store.last_event(TENANT, job.id) == (2, JobState.RUNNING)
    released = queue.release(lease, Ending(JobState.SUCCEEDED, bodies=(Notice(text="done"),), also=publish))
    assert (released.display_name, released.last_event) == ("published", 4)
    assert [event.body.kind for event in store.events(TENANT, job.id, 2, 10)] == ["notice", "state"]


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.VALIDATING, JobState.CANCELLED])
def test_an_illegal_next_state_is_refused_and_changes_nothing(store, queue, job, lease, state):
    before = store.get(TENANT, job.id)
    with pytest.raises(
        JobStateConflict, match=f"is RUNNING and cannot become {state}; possible next states: "
    ):
        queue.release(lease, Ending(state))
    assert store.get(TENANT, job.id) == before
    assert queue.renew(lease, MINUTE) == before


def test_a_job_that_is_let_go_is_held_by_nobody(store, queue, job, lease):
    with pytest.raises(ValueError, match="let go cannot be RUNNING"):
        queue.release(lease, Ending(JobState.RUNNING))
    assert store.get(TENANT, job.id).state is JobState.RUNNING


def test_finished_jobs_are_told_from_others(store, queue):
    made = [store.create(train_job(), NO_REQUEST).id for _ in range(3)]
    store.cancel(TENANT, made[0])
    queue.claim("worker", MINUTE)
    assert queue.finished(made) == {made[0]}
    assert queue.finished([]) == set()


# Cancelling


def test_a_queued_job_is_cancelled_at_once(store, queue, job):
    cancelled = store.cancel(TENANT, job.id)
    assert (cancelled.state, cancelled.state_reason) == (JobState.CANCELLED, StateReason.USER)
    assert cancelled.end_time is not None
    assert queue.claim("worker", MINUTE) is None


def test_a_running_job_is_told_to_stop_and_repeating_that_is_no_fault(store, queue, job, lease):
    assert store.cancel(TENANT, job.id).state is JobState.CANCELLING
    again = store.cancel(TENANT, job.id)
    assert (again.state, again.last_event) == (JobState.CANCELLING, 3)
    assert queue.renew(lease, MINUTE).state is JobState.CANCELLING


@pytest.mark.parametrize("reason", [StateReason.SHUTDOWN, StateReason.WORKER_LOST])
def test_a_cancelled_job_that_is_given_back_is_over(store, queue, job, lease, reason):
    store.cancel(TENANT, job.id)
    released = queue.release(lease, Ending(JobState.QUEUED, reason))
    assert (released.state, released.state_reason) == (JobState.CANCELLED, StateReason.USER)
    assert released.attempt == 1


def test_a_cancelled_job_whose_worker_is_lost_is_over(store, queue, job, lease):
    store.cancel(TENANT, job.id)
    queue.expire("worker")
    queue.recover(max_attempts=3)
    assert states_told(store, job)[-1] == (JobState.CANCELLED, StateReason.USER, 1)


def test_a_result_that_comes_before_the_cancel_is_noticed_counts(store, queue, job, lease):
    store.cancel(TENANT, job.id)
    assert queue.release(lease, Ending(JobState.SUCCEEDED)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_a_finished_job_cannot_be_cancelled(store, database, job, state):
    force_state(database, job, state)
    with pytest.raises(JobStateConflict, match="none: it is finished") as refusal:
        store.cancel(TENANT, job.id)
    assert (refusal.value.status, refusal.value.metadata) == ("FAILED_PRECONDITION", {"state": state})


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (JobState.VALIDATING, JobState.CANCELLED),
        (JobState.PAUSED, JobState.CANCELLED),
        (JobState.PAUSING, JobState.CANCELLING),
    ],
)
def test_cancelling_in_other_states(store, database, job, state, after):
    force_state(database, job, state)
    assert store.cancel(TENANT, job.id).state is after


def test_a_queued_job_is_paused_at_once_and_resumed(store, queue, job):
    paused = store.pause(TENANT, job.id)
    assert (paused.state, paused.state_reason) == (JobState.PAUSED, StateReason.USER)
    assert queue.claim("worker", MINUTE) is None
    assert store.pause(TENANT, job.id) == paused
    resumed = store.resume(TENANT, job.id)
    assert (resumed.state, resumed.state_reason, resumed.attempt) == (JobState.QUEUED, StateReason.USER, 1)
    assert store.resume(TENANT, job.id) == resumed
    assert queue.claim("worker", MINUTE)[0].id == job.id


@pytest.mark.parametrize("paused_too", ["", "when it has stopped", "meanwhile"])
def test_a_job_that_has_shown_what_it_takes_does_not_wait_again(store, queue, paused_too):
    shown = store.create(train_job().model_copy(update={"pause_after_estimate": True}), NO_REQUEST)
    _, lease = queue.claim("worker", MINUTE)
    measured = Estimated(estimate=Estimate(steps=9, basis=EstimateBasis.MEASURED))
    queue.record(lease, lambda job: apply_reports(job, [measured]), ())
    if paused_too == "meanwhile":
        store.pause(TENANT, shown.id)
    queue.pause(lease, StateReason.ESTIMATED, [Notice(text="shown")])
    assert queue.release(lease, Ending(JobState.QUEUED, StateReason.ESTIMATED)).pause_after_estimate
    if paused_too:
        assert store.pause(TENANT, shown.id).state_reason is StateReason.USER
    assert not store.resume(TENANT, shown.id).pause_after_estimate


def test_a_job_that_was_paused_before_it_has_shown_what_it_takes_still_does(store):
    shown = store.create(train_job().model_copy(update={"pause_after_estimate": True}), NO_REQUEST)
    store.pause(TENANT, shown.id)
    assert store.resume(TENANT, shown.id).pause_after_estimate


def test_a_running_job_is_told_to_pause_and_its_result_may_come_first(store, queue, job, lease):
    assert store.pause(TENANT, job.id).state is JobState.PAUSING
    with pytest.raises(JobStateConflict, match="PAUSING; only a PAUSED job can be resumed: wait"):
        store.resume(TENANT, job.id)
    assert queue.renew(lease, MINUTE).state is JobState.PAUSING
    assert queue.release(lease, Ending(JobState.SUCCEEDED)).state is JobState.SUCCEEDED
    for call in (store.pause, store.resume):
        with pytest.raises(JobStateConflict):
            call(TENANT, job.id)


def test_a_cancel_wins_over_a_pause(store, queue, job, lease):
    store.pause(TENANT, job.id)
    assert store.cancel(TENANT, job.id).state is JobState.CANCELLING
    with pytest.raises(JobStateConflict):
        store.pause(TENANT, job.id)
    assert queue.release(lease, Ending(JobState.QUEUED)).state is JobState.CANCELLED


def test_what_a_full_disk_paused_goes_on_by_itself_unless_the_user_paused_it_too(store, queue, job, lease):
    other = store.create(train_job(), NO_REQUEST)
    queue.pause(lease, StateReason.DISK_FULL, [Notice(text="full")])
    assert queue.pause(lease, StateReason.DISK_FULL, [Notice(text="full")]).last_event == 4
    queue.release(lease, Ending(JobState.QUEUED))
    store.pause(TENANT, other.id)
    assert states_told(store, job)[-1] == (JobState.PAUSED, StateReason.DISK_FULL, 1)
    (resumed,) = queue.resume(with_free(10**12))
    assert (resumed.id, resumed.state, resumed.state_reason) == (
        job.id,
        JobState.QUEUED,
        StateReason.DISK_FULL,
    )
    _, again = queue.claim("worker", MINUTE)
    queue.pause(again, StateReason.DISK_FULL, [])
    queue.release(again, Ending(JobState.QUEUED))
    assert store.pause(TENANT, job.id).state_reason is StateReason.USER
    assert queue.resume(with_free(10**12)) == []


def test_a_job_goes_on_when_the_disk_has_what_it_said_it_wants_and_not_before(store, queue, job, lease):
    def wanting(gigabytes):
        return lambda job: job.model_copy(update={"disk_bytes_wanted": gigabytes * GIGABYTE})

    other = store.create(train_job(), NO_REQUEST)
    queue.pause(lease, StateReason.DISK_FULL, [], wanting(12))
    queue.pause(lease, StateReason.DISK_FULL, [], wanting(16))
    queue.release(lease, Ending(JobState.QUEUED))
    _, of_other = queue.claim("worker", MINUTE)
    queue.pause(of_other, StateReason.DISK_FULL, [], wanting(12))
    queue.release(of_other, Ending(JobState.QUEUED))

    for gigabytes in (0, 1, 2, 12):
        assert queue.resume(with_free(gigabytes * GIGABYTE)) == [], "one of them must stay free"
    assert [resumed.id for resumed in queue.resume(with_free(14 * GIGABYTE))] == [other.id]
    assert queue.resume(with_free(14 * GIGABYTE)) == []
    again, lease = queue.claim("worker", MINUTE)
    assert again.id == other.id
    queue.pause(lease, StateReason.DISK_FULL, [], wanting(12))
    queue.release(lease, Ending(JobState.QUEUED))
    # Not both: the second would take what the first was resumed for, until that has come to its steps.
    assert [resumed.id for resumed in queue.resume(with_free(28 * GIGABYTE))] == [job.id]
    assert queue.resume(with_free(28 * GIGABYTE)) == []
    running, lease = queue.claim("worker", MINUTE)
    assert (running.id, running.disk_bytes_wanted) == (job.id, 16 * GIGABYTE)
    assert queue.resume(with_free(28 * GIGABYTE)) == []
    queue.record(lease, unchanged, [Progress(phase="training", step=1, total_steps=2)])
    assert store.get(TENANT, job.id).disk_bytes_wanted == 0
    assert [resumed.id for resumed in queue.resume(with_free(28 * GIGABYTE))] == [other.id]


def test_only_finished_jobs_without_a_version_are_deleted(store, database, job, tmp_path):
    with pytest.raises(
        JobStateConflict, match="is QUEUED; only a finished job can be deleted: cancel it first"
    ):
        store.delete(TENANT, job.id)
    store.cancel(TENANT, job.id)
    with pytest.raises(NotFound):
        store.delete("another", job.id)
    store.delete(TENANT, job.id)
    for look in (store.get, store.delete, store.last_event):
        with pytest.raises(NotFound):
            look(TENANT, job.id)
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(job_events)) == 0


def test_a_deleted_jobs_files_go_and_its_request_makes_no_other(database, tmp_path):
    store = JobStore(database, stored_limits(tmp_path), directory=tmp_path / "jobs")
    request = RequestKey.of(TENANT, "once", b"body")
    job = store.create(train_job(), request)
    (tmp_path / "jobs" / job.id / "work").mkdir(parents=True)
    store.cancel(TENANT, job.id)
    store.delete(TENANT, job.id)
    assert list((tmp_path / "jobs").iterdir()) == []
    for repeat in (lambda: store.create(train_job(), request), lambda: store.made_by(request)):
        with pytest.raises(NotFound, match="has been deleted since"):
            repeat()


def test_a_pausing_job_whose_worker_is_lost_is_paused_and_others_are_recovered_too(store, queue, database):
    made = [store.create(train_job(), NO_REQUEST) for _ in range(2)]
    for _ in made:
        queue.claim("worker", -1.0)
    force_state(database, made[0], JobState.PAUSING)
    assert len(queue.recover(max_attempts=3)) == 2
    assert [store.get(TENANT, job.id).state for job in made] == [JobState.PAUSED, JobState.QUEUED]


# Events


def test_events_are_read_from_a_cursor_in_order(store, queue, job, lease):
    queue.record(lease, unchanged, [Notice(text=str(i)) for i in range(5)])
    numbers = [event.number for event in store.events(TENANT, job.id, 0, 100)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert [event.number for event in store.events(TENANT, job.id, 5, 100)] == [6, 7]
    assert [event.number for event in store.events(TENANT, job.id, 2, 3)] == [3, 4, 5]
    assert store.events(TENANT, job.id, 7, 100) == []
    assert store.events(TENANT, job.id, 99, 100) == []
    assert store.last_event(TENANT, job.id) == (7, JobState.RUNNING)


def test_events_come_in_pages(store, queue, job, lease):
    queue.record(lease, unchanged, [Notice(text=str(i)) for i in range(3)])
    numbers, token = [], ""
    while True:
        page = store.event_page(TENANT, job.id, PageRequest.parse(2, token))
        numbers.append([event.number for event in page.items])
        token = page.next_token
        if not token:
            break
    assert numbers == [[1, 2], [3, 4], [5]]


def test_a_change_without_events_is_kept(store, queue, job, lease):
    queue.record(lease, lambda job: job.model_copy(update={"display_name": "renamed"}), [])
    found = store.get(TENANT, job.id)
    assert (found.display_name, found.last_event) == ("renamed", 2)


def test_old_events_are_trimmed_and_a_cursor_before_them_is_out_of_range(store, database, job):
    queue = JobQueue(database, max_events=4)
    _, lease = queue.claim("worker", MINUTE)
    queue.record(lease, unchanged, [Notice(text=str(i)) for i in range(6)])
    assert [event.number for event in store.events(TENANT, job.id, 0, 100)] == [5, 6, 7, 8]
    assert [event.number for event in store.events(TENANT, job.id, 4, 100)] == [5, 6, 7, 8]
    with pytest.raises(OutOfRange) as refusal:
        store.events(TENANT, job.id, 3, 100)
    assert (refusal.value.status, refusal.value.metadata) == ("OUT_OF_RANGE", {"first_kept": "5"})
    assert store.event_page(TENANT, job.id, PageRequest.parse(2, "")).items[0].number == 5


def test_writers_at_the_same_time_leave_no_gap_in_the_numbers(store, queue, job, lease):
    def record() -> None:
        for i in range(8):
            queue.record(lease, unchanged, [Notice(text=str(i)), Notice(text=str(i))])

    def renew() -> None:
        for _ in range(8):
            queue.renew(lease, MINUTE)

    threads = [threading.Thread(target=work) for work in (record, record, record, renew)]
    threads.append(threading.Thread(target=lambda: store.cancel(TENANT, job.id)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [event.number for event in store.events(TENANT, job.id, 0, 1000)]
    expected = 2 + 3 * 8 * 2 + 1
    assert numbers == list(range(1, expected + 1))
    assert store.get(TENANT, job.id).last_event == expected
    assert store.last_event(TENANT, job.id) == (expected, JobState.CANCELLING)
