"""The durable store of jobs as workers see it: claims, leases, and what is written under them.

A worker holds a job by a lease with an epoch that only rises. Everything a worker writes names its
epoch and is refused (`LeaseLost`) once another has taken over, so a worker that was stopped for a
while and comes back can neither publish twice nor overwrite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, select, update

from finetuned_service.errors import Internal
from finetuned_service.jobs.events import EventBody, Notice, Progress
from finetuned_service.jobs.room import Room
from finetuned_service.jobs.rows import (
    HELD_STATES,
    UNFINISHED_STATES,
    Lease,
    append_events,
    held_job,
    move_job,
    readable_job,
    trim_events,
)
from finetuned_service.jobs.shares import Victim, charge, victim, waiting
from finetuned_service.jobs.states import Fault, JobState, StateReason
from finetuned_service.jobs.values import Job
from finetuned_service.storage.database import Database
from finetuned_service.storage.schema import jobs


def _unchanged(job: Job) -> Job:
    return job


def _nothing(_connection: Connection, job: Job) -> Job:
    return job


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker leaves a job; written in one transaction."""

    state: JobState
    reason: StateReason = StateReason.NONE
    change: Callable[[Job], Job] = _unchanged
    """Of the job's record."""
    bodies: tuple[EventBody, ...] = ()
    """The last events before that of the new state."""
    also: Callable[[Connection, Job], Job] = _nothing
    """What is published with it; returns the record with the result."""


class JobQueue:
    """Jobs to be run. Every method is one transaction."""

    def __init__(self, database: Database, max_events: int = 10_000) -> None:
        """`max_events` of a job are kept at most; older ones are thinned."""
        self._database = database
        self._max_events = max_events

    def claim(self, owner: str, lease_seconds: float) -> tuple[Job, Lease] | None:
        """Take the QUEUED job that is next (`jobs/shares.py`), or None if there is none."""
        if not self._any(jobs.c.state == JobState.QUEUED):
            return None
        with self._database.begin() as connection:
            now = time.time()
            found = _first_free(connection, now)
            if found is None:
                return None
            job, epoch = found
            lease = Lease(job.id, owner, epoch + 1)
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job.id)
                .values(
                    lease_owner=owner,
                    lease_epoch=lease.epoch,
                    lease_until=now + lease_seconds,
                    claim_time=now,
                )
            )
            # What an attempt before this one has found wrong is over.
            changes: dict[str, object] = {
                "error": None,
                "fault": None,
                "preempting": False,
                "steps_since": None,
            }
            if job.start_time is None:
                changes["start_time"] = datetime.now(UTC)
            job = job.model_copy(update=changes)
            return move_job(connection, job, JobState.RUNNING, StateReason.NONE), lease

    def renew(self, lease: Lease, lease_seconds: float) -> Job:
        """Keep the lease, and learn what has become of the job."""
        with self._database.begin() as connection:
            job = held_job(connection, lease)
            connection.execute(
                update(jobs).where(jobs.c.id == lease.job_id).values(lease_until=time.time() + lease_seconds)
            )
            return job

    def record(self, lease: Lease, change: Callable[[Job], Job], bodies: Sequence[EventBody]) -> Job:
        """Apply a change to the job's record and append its events, under the lease."""
        with self._database.begin() as connection:
            job = change(held_job(connection, lease))
            if job.steps_since is None and any(_tells_a_step(body) for body in bodies):
                job = job.model_copy(update={"steps_since": time.time(), "disk_bytes_wanted": 0})
            job = append_events(connection, job, bodies)
            trim_events(connection, job, self._max_events)
            return job

    def pause(
        self,
        lease: Lease,
        reason: StateReason,
        bodies: Sequence[EventBody],
        change: Callable[[Job], Job] = _unchanged,
    ) -> Job:
        """Have a job that runs under the lease stop for a reason of the worker's, with a change to its record; one that
        was told to stop already is only changed.

        Raises:
            LeaseLost: another worker has taken the job over.
        """
        with self._database.begin() as connection:
            job = change(held_job(connection, lease))
            if job.state is not JobState.RUNNING:
                return append_events(connection, job, ())
            return move_job(connection, append_events(connection, job, bodies), JobState.PAUSING, reason)

    def preempt(self, *, patience_seconds: float, slice_seconds: float) -> Job | None:
        """Mark a running job that is to make room for the one that is next, with an event that says why; None
        if there is none, or one does so already. For a worker whose places are all taken.
        """
        with self._database.read() as connection:
            if self._victim(connection, patience_seconds, slice_seconds) is None:
                return None
        with self._database.begin() as connection:
            chosen = self._victim(connection, patience_seconds, slice_seconds)
            if chosen is None:
                return None
            query = select(jobs.c.document).where(jobs.c.id == chosen.job_id).with_for_update()
            job = readable_job(chosen.job_id, connection.execute(query).scalar_one())
            if job is None:
                return None
            lost = job.slices_lost + (chosen.slice_over and job.steps_since is None)
            job = job.model_copy(update={"preempting": True, "slices_lost": lost})
            text = f"{chosen.why}: this one writes a checkpoint, stops, and goes on when there is a place"
            return append_events(connection, job, [Notice(text=text)])

    @staticmethod
    def _victim(connection: Connection, patience_seconds: float, slice_seconds: float) -> Victim | None:
        held = _readable(connection, select(jobs).where(jobs.c.state == JobState.RUNNING))
        if any(job.preempting for job in held):
            return None
        return victim(connection, time.time(), patience_seconds=patience_seconds, slice_seconds=slice_seconds)

    def resume(self, room: Room) -> list[Job]:
        """Queue jobs again that a full disk had paused, the oldest first, as far as each has the room that it wants
        beside those before it, and beside those that were queued for it and have not come to their steps; returns them.
        """
        if not self._any(jobs.c.state == JobState.PAUSED):
            return []
        with self._database.begin() as connection:
            states = (JobState.PAUSED, JobState.QUEUED, JobState.RUNNING)
            query = select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.sequence)
            found = _readable(connection, query.with_for_update())
            promised_bytes = sum(job.disk_bytes_wanted for job in found if job.state is not JobState.PAUSED)
            resumed, spare_bytes = list[Job](), room.spare_bytes() - promised_bytes
            for job in (job for job in found if job.state is JobState.PAUSED):
                wanted_bytes = room.wanted_bytes(job.disk_bytes_wanted)
                if job.state_reason is StateReason.DISK_FULL and wanted_bytes <= spare_bytes:
                    spare_bytes -= wanted_bytes
                    resumed.append(move_job(connection, job, JobState.QUEUED, StateReason.DISK_FULL))
            return resumed

    def release(self, lease: Lease, ending: Ending) -> Job:
        """End the hold on a job.

        A job that was to be cancelled or paused and is given back ends as CANCELLED or PAUSED.

        Raises:
            LeaseLost: another worker has taken the job over.
            JobStateConflict: the job's state does not allow the ending.
            ValueError: the ending is a state in which a worker holds the job.
        """
        if ending.state in HELD_STATES:
            raise ValueError(f"a job that is let go cannot be {ending.state}")
        with self._database.begin() as connection:
            job = ending.change(held_job(connection, lease))
            job = append_events(connection, ending.also(connection, job), ending.bodies)
            state, reason = ending.state, ending.reason
            if state is JobState.QUEUED:
                state, reason = _given_back(job, reason)
            return _let_go(connection, job, state, reason)

    def recover(self, max_attempts: int) -> list[Job]:
        """Give back every job whose worker let its lease run out; returns them as they are left.

        One that is lost for the `max_attempts`th time fails: what ends its worker each time would do so for ever.
        """
        lost = and_(jobs.c.state.in_(HELD_STATES), jobs.c.lease_until < time.time())
        if not self._any(lost):
            return []
        recovered: list[Job] = []
        with self._database.begin() as connection:
            for found in _readable(connection, select(jobs).where(lost).with_for_update()):
                job = found
                # The epoch rises so that the lost worker, should it come back, is refused.
                connection.execute(
                    update(jobs).where(jobs.c.id == job.id).values(lease_epoch=jobs.c.lease_epoch + 1)
                )
                state, reason = _given_back(job, StateReason.WORKER_LOST)
                if state is JobState.QUEUED and job.losses + 1 >= max_attempts:
                    state, job = JobState.FAILED, _lost_too_often(job)
                recovered.append(_let_go(connection, job, state, reason))
        return recovered

    def expire(self, owner: str) -> None:
        """Let the leases of an owner that is known to be dead run out now."""
        with self._database.begin() as connection:
            for job_id in connection.scalars(select(jobs.c.id).where(jobs.c.lease_owner == owner)).all():
                charge(connection, job_id, time.time())  # before nobody knows when it ran out
            connection.execute(update(jobs).where(jobs.c.lease_owner == owner).values(lease_until=0.0))

    def finished(self, job_ids: Iterable[str]) -> set[str]:
        """Those of the jobs, of whatever tenants, that have reached a final state."""
        query = select(jobs.c.id).where(jobs.c.id.in_(list(job_ids)), jobs.c.state.not_in(UNFINISHED_STATES))
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def _any(self, condition: ColumnElement[bool]) -> bool:
        """Whether there is such a job. An idle worker only reads, and is in no writer's way."""
        with self._database.read() as connection:
            return connection.execute(select(jobs.c.id).where(condition).limit(1)).first() is not None


def _readable(connection: Connection, query: Select[Any]) -> list[Job]:
    """The jobs of these rows but those whose records cannot be read."""
    found = [readable_job(row.id, row.document) for row in connection.execute(query).all()]
    return [job for job in found if job is not None]


def _tells_a_step(body: EventBody) -> bool:
    return isinstance(body, Progress) and body.phase == "training" and body.step > 0


def _given_back(job: Job, reason: StateReason) -> tuple[JobState, StateReason]:
    """The state of a job that its worker gives back before its end."""
    match job.state:
        case JobState.CANCELLING:
            return JobState.CANCELLED, StateReason.USER
        case JobState.PAUSING:
            return JobState.PAUSED, job.state_reason
        case _:
            return JobState.QUEUED, reason


def _first_free(connection: Connection, now: float) -> tuple[Job, int] | None:
    """The next job, locked, and the epoch of its last lease; one that another worker is about to take is passed over, and
    one whose record cannot be read.
    """
    for candidate in waiting(connection, now):
        row = connection.execute(
            select(jobs.c.document, jobs.c.lease_epoch)
            .where(jobs.c.id == candidate.job_id, jobs.c.state == JobState.QUEUED)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        job = readable_job(candidate.job_id, row.document) if row is not None else None
        if row is not None and job is not None:
            return job, int(row.lease_epoch)
    return None


def _let_go(connection: Connection, job: Job, state: JobState, reason: StateReason) -> Job:
    charge(connection, job.id, time.time())
    if state is JobState.CANCELLED:
        # It ends because its user wants it to, whatever its process has said.
        job = job.model_copy(update={"error": None, "fault": None})
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(lease_owner="", lease_until=0.0))
    return move_job(connection, job, state, reason)


def _lost_too_often(job: Job) -> Job:
    error = Internal(
        f"the job's worker was lost in attempt {job.attempt}, which is the last; the server's log tells why "
        "it ended",
        metadata={"attempts": str(job.attempt)},
    )
    return job.model_copy(update={"error": error.to_wire(), "fault": Fault.SYSTEM})
