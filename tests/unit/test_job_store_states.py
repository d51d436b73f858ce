"""Any sequence of calls and workers: states move only as the table allows, and leases fence."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from finetuned_service.errors import JobStateConflict
from finetuned_service.jobs.events import Notice, StateChanged
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.rows import HELD_STATES, Lease, LeaseLost
from finetuned_service.jobs.states import NEXT_STATES, JobState, StateReason
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.values import Job
from finetuned_service.storage.database import Database
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from tiny_jobs import NO_REQUEST, TENANT, train_job
from tiny_limits import stored_limits

MAX_ATTEMPTS = 3
FINAL = {state for state in JobState if state.final}
GIVEN_BACK = {JobState.CANCELLING: JobState.CANCELLED, JobState.PAUSING: JobState.PAUSED}
"""What becomes of a job that its worker gives back before its end; of others QUEUED."""


@dataclass
class Known:
    """What a job must be like by the calls that were made."""

    state: JobState = JobState.QUEUED
    attempt: int = 1
    holder: Lease | None = None
    events: int = 1
    told: list[JobState] = field(default_factory=lambda: [JobState.QUEUED])

    def move(self, state: JobState) -> None:
        self.state = state
        self.told.append(state)
        self.events += 1


class JobLife(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{self.directory / 'finetuned.db'}")
        self.store, self.queue = (
            JobStore(self.database, stored_limits(self.directory)),
            JobQueue(self.database),
        )
        self.known: dict[str, Known] = {}

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.directory)

    @rule(target=jobs)
    def create(self) -> str:
        job = self.store.create(train_job(), NO_REQUEST)
        self.known[job.id] = Known()
        return job.id

    @rule(target=leases, owner=st.sampled_from(["a", "b"]))
    def claim(self, owner: str) -> Lease:
        waiting = [job_id for job_id, known in self.known.items() if known.state is JobState.QUEUED]
        claimed = self.queue.claim(owner, 3600.0)
        if claimed is None:
            assert waiting == []
            return Lease("absent", owner, 0)
        job, lease = claimed
        assert job.id == waiting[0]
        self.known[job.id].move(JobState.RUNNING)
        self.known[job.id].holder = lease
        return lease

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        known = self.known[job_id]
        try:
            job = self.store.cancel(TENANT, job_id)
        except JobStateConflict:
            assert known.state.final
            return
        if known.state is not JobState.CANCELLING:
            waits = known.state in {JobState.QUEUED, JobState.PAUSED}
            known.move(JobState.CANCELLED if waits else JobState.CANCELLING)
        assert job.state is known.state

    @rule(job_id=jobs)
    def pause(self, job_id: str) -> None:
        known = self.known[job_id]
        try:
            job = self.store.pause(TENANT, job_id)
        except JobStateConflict:
            assert known.state in {JobState.CANCELLING, *FINAL}
            return
        if known.state not in {JobState.PAUSING, JobState.PAUSED}:
            known.move(JobState.PAUSED if known.state is JobState.QUEUED else JobState.PAUSING)
        assert job.state is known.state

    @rule(job_id=jobs)
    def resume(self, job_id: str) -> None:
        known = self.known[job_id]
        try:
            job = self.store.resume(TENANT, job_id)
        except JobStateConflict:
            assert known.state in {JobState.PAUSING, JobState.CANCELLING, *FINAL}
            return
        if known.state is JobState.PAUSED:
            known.move(JobState.QUEUED)
        assert job.state is known.state

    @rule(lease=leases)
    def record(self, lease: Lease) -> None:
        known = self.known.get(lease.job_id)
        try:
            self.queue.record(lease, lambda job: job, [Notice(text="here")])
        except LeaseLost:
            assert known is None or known.holder != lease
            return
        assert known is not None
        assert known.holder == lease
        known.events += 1

    @rule(
        lease=leases,
        state=st.sampled_from(list(JobState)),
        reason=st.sampled_from([StateReason.SHUTDOWN, StateReason.WORKER_LOST]),
    )
    def release(self, lease: Lease, state: JobState, reason: StateReason) -> None:
        known = self.known.get(lease.job_id)
        try:
            self.queue.release(lease, Ending(state, reason))
        except ValueError:
            assert state in HELD_STATES
            return
        except LeaseLost:
            assert known is None or known.holder != lease
            return
        except JobStateConflict:
            assert known is not None
            assert state not in NEXT_STATES[known.state]
            return
        assert known is not None
        assert known.holder == lease
        if state is JobState.QUEUED:
            state = GIVEN_BACK.get(known.state, state)
        assert state in NEXT_STATES[known.state]
        if state is JobState.QUEUED and reason is StateReason.WORKER_LOST:
            known.attempt += 1
        known.move(state)
        known.holder = None

    @rule(lease=consumes(leases))
    def lose_worker(self, lease: Lease) -> None:
        self.queue.expire(lease.owner)
        self.queue.recover(MAX_ATTEMPTS)
        for known in self.known.values():
            if known.holder is None or known.holder.owner != lease.owner:
                continue
            known.holder = None
            if known.state in GIVEN_BACK:
                known.move(GIVEN_BACK[known.state])
            elif known.attempt >= MAX_ATTEMPTS:
                known.move(JobState.FAILED)
            else:
                known.attempt += 1
                known.move(JobState.QUEUED)

    @invariant()
    def store_and_events_agree_with_what_happened(self) -> None:
        for job_id, known in self.known.items():
            job: Job = self.store.get(TENANT, job_id)
            assert (job.state, job.attempt, job.last_event) == (known.state, known.attempt, known.events)
            assert (job.end_time is not None) is known.state.final
            events = self.store.events(TENANT, job_id, 0, 1000)
            assert [event.number for event in events] == list(range(1, known.events + 1))
            told = [event.body.state for event in events if isinstance(event.body, StateChanged)]
            assert told == known.told


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True, database=None
)


def test_the_table_is_closed_and_final_states_end():
    assert set(NEXT_STATES) == set(JobState)
    assert {state for state in JobState if state.final} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }
    reached, frontier = set(), {JobState.QUEUED}
    while frontier:
        reached |= frontier
        frontier = {after for state in frontier for after in NEXT_STATES[state]} - reached
    assert reached == set(JobState) - {JobState.VALIDATING}
