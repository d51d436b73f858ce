"""Jobs and their events as rows: read, moved and appended to in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from finetuned_service.errors import Internal, JobStateConflict, NotFound
from finetuned_service.jobs.events import EventBody, JobEvent, StateChanged
from finetuned_service.jobs.states import NEXT_STATES, JobState, StateReason
from finetuned_service.jobs.thinning import Told, thinned
from finetuned_service.jobs.values import Job
from finetuned_service.names import ResourceName
from finetuned_service.storage.schema import job_events, jobs
from finetuned_service.telemetry.logs import logger

HELD_STATES = (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)
"""States in which a worker holds the lease."""
UNFINISHED_STATES = tuple(state for state in JobState if not state.final)
_NEXT_ATTEMPT = frozenset(
    {StateReason.WORKER_LOST, StateReason.MEMORY, StateReason.PREEMPTED, StateReason.ENGINE_ENDED}
)
"""Why a job that is queued again begins another attempt; where it was asked to stop, it goes on with the same."""

_BODY: TypeAdapter[EventBody] = TypeAdapter(EventBody)
_LOG = logger("jobs")
_SHOWN_PARTS = 4
"""Of a setting's path: spec, kind, part, name."""


def readable_job(job_id: str, document: str) -> Job | None:
    """The job of a record; None for one that this build cannot read, which the log tells once.

    Another build has written it, or a fault of ours. It stays as it is for a build that can read it, and is in
    no other job's way.
    """
    try:
        return Job.model_validate_json(document)
    except ValidationError as error:
        # Without what was found: it may be a tenant's, as keys of the settings' maps are.
        _tell_unreadable(job_id, "; ".join(_place(found["loc"], found["type"]) for found in error.errors()))
        return None


def _place(path: tuple[int | str, ...], problem: str) -> str:
    return f"{'.'.join(map(str, path[:_SHOWN_PARTS]))}: {problem}"


@lru_cache(maxsize=1024)
def _tell_unreadable(job_id: str, why: str) -> None:
    """Once for each: every round of a worker comes upon it again."""
    _LOG.error("job_record_not_readable", job=job_id, why=why, see="DeleteJob, or the build that wrote it")


class LeaseLost(Exception):
    """Another worker has taken the job over, or may have."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's hold on one job."""

    job_id: str
    owner: str
    epoch: int


def load_job(connection: Connection, name: ResourceName, *, to_change: bool = False) -> Job:
    """The job of that name.

    Raises:
        NotFound: if there is none.
        Internal: this build cannot read its record.
    """
    query = select(jobs.c.document).where(jobs.c.tenant == name.tenant, jobs.c.id == name.id)
    document = connection.scalar(query.with_for_update() if to_change else query)
    if document is None:
        raise NotFound.resource(str(name))
    return _job_of(name.id, document)


def _job_of(job_id: str, document: str) -> Job:
    job = readable_job(job_id, document)
    if job is None:
        raise Internal(
            f"the record of job {job_id} cannot be read by this build of the service; the server's log says why. "
            "DeleteJob removes it",
            metadata={"job": job_id},
        )
    return job


def held_job(connection: Connection, lease: Lease) -> Job:
    """The job under a lease.

    Raises:
        LeaseLost: the lease is another's now, or was given back.
        Internal: this build cannot read its record.
    """
    row = connection.execute(
        select(jobs.c.document, jobs.c.lease_epoch, jobs.c.lease_owner)
        .where(jobs.c.id == lease.job_id)
        .with_for_update()
    ).one_or_none()
    if row is None or (row.lease_epoch, row.lease_owner) != (lease.epoch, lease.owner):
        raise LeaseLost(lease.job_id)
    return _job_of(lease.job_id, row.document)


def move_job(connection: Connection, job: Job, state: JobState, reason: StateReason) -> Job:
    """Write the job's record with its next state, and the event that tells of it.

    Raises:
        JobStateConflict: the state is not a legal next one.
    """
    if state not in NEXT_STATES[job.state]:
        allowed = ", ".join(sorted(NEXT_STATES[job.state])) or "none: it is finished"
        raise JobStateConflict(
            f"{job.name} is {job.state} and cannot become {state}; possible next states: {allowed}",
            metadata={"state": job.state},
        )
    changes: dict[str, object] = {"state": state, "state_reason": reason}
    if state.final:
        changes["end_time"] = datetime.now(UTC)
    if state is JobState.QUEUED and reason in _NEXT_ATTEMPT:
        changes["attempt"] = job.attempt + 1
        changes["losses"] = job.losses + (reason is StateReason.WORKER_LOST)
        changes["engine_ends"] = job.engine_ends + (reason is StateReason.ENGINE_ENDED)
    job = job.model_copy(update=changes)
    return append_events(connection, job, [StateChanged(state=state, reason=reason, attempt=job.attempt)])


def append_events(connection: Connection, job: Job, bodies: Sequence[EventBody]) -> Job:
    """Write the job's record with new events; the caller has read the record in this transaction."""
    now = time.time()
    rows = [
        {"job_id": job.id, "number": job.last_event + i, "time": now, "body": body.model_dump_json()}
        for i, body in enumerate(bodies, start=1)
    ]
    if rows:
        connection.execute(insert(job_events), rows)
    job = job.model_copy(update={"last_event": job.last_event + len(rows)})
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job.id)
        .values(
            state=job.state,
            last_event=job.last_event,
            end_time=job.end_time.timestamp() if job.end_time else None,
            document=job.model_dump_json(),
        )
    )
    return job


def trim_events(connection: Connection, job: Job, max_events: int) -> None:
    """Keep at most so many events of the job: older ones are thinned (`jobs/thinning.py`), which leaves gaps in their
    numbers. The oldest go only where there is nothing to thin; a cursor before them is then out of range.
    """
    if job.last_event <= max_events:
        return
    own = job_events.c.job_id == job.id
    count = connection.scalar(select(func.count()).select_from(job_events).where(own)) or 0
    if count <= max_events:
        return
    query = select(job_events.c.number, job_events.c.body).where(own).order_by(job_events.c.number)
    rows = connection.execute(query.limit(count // 2)).all()
    # A few more than must, or each call would look at all of them.
    dropped = thinned(
        [Told.parse(row.number, row.body) for row in rows], count - max_events + max_events // 16
    )
    if dropped:
        connection.execute(delete(job_events).where(own, job_events.c.number.in_(dropped)))
        return
    numbers = select(job_events.c.number).where(own).order_by(job_events.c.number)
    first = connection.execute(numbers.offset(count - max_events).limit(1)).scalar_one()
    connection.execute(delete(job_events).where(own, job_events.c.number < first))
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(first_event=first))


def parse_event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        number=row.number, time=datetime.fromtimestamp(row.time, UTC), body=_BODY.validate_json(row.body)
    )
