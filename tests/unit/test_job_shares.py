"""Whose job is next, and for which a running one is stopped: priorities, turns of tenants, time that fades."""

from __future__ import annotations

import time

import pytest
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.rows import Lease
from finetuned_service.jobs.shares import HALF_LIFE_SECONDS
from finetuned_service.jobs.states import JobState, Priority, StateReason
from finetuned_service.jobs.store import JobFilter, JobStore
from finetuned_service.jobs.values import Job
from finetuned_service.storage.database import Database
from finetuned_service.storage.pages import PageRequest
from tiny_jobs import NO_REQUEST, train_job
from tiny_limits import stored_limits

MINUTE = 60.0


class Clock:
    """The time of day, which passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def place(tmp_path, clock):
    database = Database(f"sqlite:///{tmp_path / 'finetuned.db'}")
    yield Place(JobStore(database, stored_limits(tmp_path)), JobQueue(database), clock)
    database.close()


class Place:
    def __init__(self, store: JobStore, queue: JobQueue, clock: Clock) -> None:
        self.store, self.queue, self.clock = store, queue, clock

    def submit(self, tenant: str, priority: Priority = Priority.NORMAL) -> Job:
        job = train_job(tenant=tenant).model_copy(update={"priority": priority})
        return self.store.create(job, NO_REQUEST)

    def claim(self) -> tuple[Job, Lease]:
        claimed = self.queue.claim("worker", 10 * 3600.0)
        assert claimed is not None
        return claimed

    def queued(self, tenant: str) -> int:
        return len(
            self.store.list(tenant, JobFilter(states=(JobState.QUEUED,)), PageRequest.parse(9, "")).items
        )

    def run(self, seconds: float) -> Job:
        """The next job, which takes so long."""
        job, lease = self.claim()
        self.clock.now += seconds
        self.queue.release(lease, Ending(JobState.SUCCEEDED))
        return job

    def preempt(self, slice_seconds: float = 1800.0) -> str:
        """The id of the job that is told to make room, or ''."""
        job = self.queue.preempt(patience_seconds=2.0, slice_seconds=slice_seconds)
        return job.id if job else ""


def test_the_highest_priority_is_next_and_then_the_oldest(place):
    low, first, second, high = (
        place.submit("a", Priority(name)) for name in ("LOW", "NORMAL", "NORMAL", "HIGH")
    )
    assert [place.run(1.0).id for _ in range(4)] == [high.id, first.id, second.id, low.id]


def test_tenants_take_turns_by_the_time_that_they_have_had(place):
    for _ in range(4):
        place.submit("a")
    for _ in range(2):
        place.submit("b")
    assert [place.run(100.0 if i == 0 else 60.0).tenant for i in range(6)] == ["a", "b", "b", "a", "a", "a"]


def test_a_tenant_does_not_get_all_places_in_one_moment(place):
    for tenant in ("a", "a", "a", "b", "c"):
        place.submit(tenant)
    assert [place.claim()[0].tenant for _ in range(5)] == ["a", "b", "c", "a", "a"]


def test_what_was_used_fades(place):
    place.submit("a")
    place.run(1000.0)
    place.clock.now += HALF_LIFE_SECONDS
    place.submit("b")
    place.run(600.0)  # half of a's thousand is less by now
    place.submit("b")
    place.submit("a")
    assert [place.run(1.0).tenant for _ in range(2)] == ["a", "b"]


def test_a_job_of_lower_priority_makes_room_and_goes_on_later(place):
    low, _ = place.submit("a", Priority.LOW), None
    _, lease = place.claim()
    place.clock.now += MINUTE
    high = place.submit("b", Priority.HIGH)
    assert place.preempt() == "", "a place may be free in a moment"
    place.clock.now += 2.0
    assert place.preempt() == low.id
    assert place.preempt() == "", "one at a time"
    job = place.queue.renew(lease, MINUTE)
    assert (job.state, job.preempting) == (JobState.RUNNING, True)
    (told,) = [e.body.text for e in place.store.events("a", low.id, 0, 100) if isinstance(e.body, Notice)]
    assert told.startswith("a job of higher priority waits: this one writes a checkpoint, stops")
    released = place.queue.release(lease, Ending(JobState.QUEUED, StateReason.PREEMPTED))
    assert (released.attempt, released.losses, released.state_reason) == (2, 0, StateReason.PREEMPTED)
    assert [place.run(1.0).id for _ in range(2)] == [high.id, low.id]
    assert place.store.get("a", low.id).preempting is False


@pytest.mark.parametrize("known_dead", [False, True])
def test_nobody_is_charged_for_the_time_in_which_nobody_worked(place, known_dead):
    """The server was lost with its worker, and came back ten hours later."""
    place.submit("a")
    assert place.queue.claim("worker", MINUTE) is not None
    place.clock.now += 10 * 3600.0
    if known_dead:
        place.queue.expire("worker")
    place.queue.recover(max_attempts=3)
    # The tenant of the lost job has had a minute.
    place.submit("b")
    place.run(5 * MINUTE)
    place.submit("b")
    assert place.run(1.0).tenant == "a"


def test_of_several_the_lowest_and_of_those_the_latest_makes_room(place):
    for priority in ("NORMAL", "LOW", "LOW"):
        place.submit("a", Priority(priority))
        last = place.claim()[0]
        place.clock.now += 1.0
    place.submit("a", Priority.HIGH)
    place.clock.now += 3.0
    assert place.preempt() == last.id


def test_a_long_job_makes_room_for_a_tenant_that_has_had_less(place):
    long = place.submit("a")
    place.claim()
    place.submit("a")
    place.clock.now += 1801.0
    assert place.preempt() == "", "its own tenant's jobs wait"
    place.submit("b")
    place.clock.now += 3.0
    assert place.preempt(slice_seconds=3600.0) == "", "not before its time"
    assert place.preempt() == long.id


def test_a_tenant_that_has_had_more_waits(place):
    place.submit("b")
    place.run(5000.0)
    place.submit("a")
    place.claim()
    place.submit("b")
    place.clock.now += 2000.0
    assert place.preempt() == ""


def test_a_job_that_is_long_before_its_first_step_comes_to_it_and_to_its_end_while_others_wait(place):
    """Encoding takes two and a half slices, and is done again after each stop; steps are kept."""
    encoding_seconds, steps_seconds, tick_seconds = 4500.0, 4000.0, 50.0
    long = place.submit("a")
    trained_seconds, encoded_in_all_seconds, attempts = 0.0, 0.0, list[float]()
    while trained_seconds < steps_seconds and len(attempts) < 9:
        if place.queued("b") == 0:
            place.submit("b")  # others always wait
        job, lease = place.claim()
        if job.id != long.id:
            place.clock.now += 60.0
            place.queue.release(lease, Ending(JobState.SUCCEEDED))
            continue
        ran_seconds = 0.0
        if place.queued("b") == 0:
            place.submit("b")
        while trained_seconds < steps_seconds and not place.preempt():
            ran_seconds += tick_seconds
            place.clock.now += tick_seconds
            if ran_seconds > encoding_seconds:
                trained_seconds += tick_seconds
                place.queue.record(lease, lambda job: job, [Progress(phase="training", step=1)])
            else:
                encoded_in_all_seconds += tick_seconds
                place.queue.record(lease, lambda job: job, [Progress(phase="encoding", step=1)])
        attempts.append(ran_seconds)
        place.queue.release(lease, Ending(JobState.QUEUED, StateReason.PREEMPTED))
    # A slice, twice as long, and then as long as it takes and a slice of steps, twice; the rest of the steps.
    assert attempts == [1800.0, 3600.0, 4500.0 + 1850.0, 4500.0 + 1850.0, 4500.0 + 300.0]
    assert place.store.get("a", long.id).slices_lost == 2


def test_a_stop_for_a_higher_priority_lengthens_no_slice(place):
    place.submit("a")
    _, lease = place.claim()
    place.submit("b", Priority.HIGH)
    place.clock.now += 3.0
    assert place.preempt()
    assert place.queue.renew(lease, MINUTE).slices_lost == 0
