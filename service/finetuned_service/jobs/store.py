"""The durable store of jobs: the only writer of their state, events and leases.

A worker holds a job by a lease with an epoch that only rises. Everything a worker writes names its
epoch and is refused (`LeaseLost`) once another has taken over, so a worker that was stopped for a
while and comes back can neither publish twice nor overwrite.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update

from finetuned_service.errors import JobStateConflict, NotFound, OutOfRange
from finetuned_service.jobs.values import (
    NEXT_STATES,
    EventBody,
    Job,
    JobEvent,
    JobState,
    StateChanged,
    StateReason,
    TrainSpec,
)
from finetuned_service.names import ResourceName
from finetuned_service.storage import idempotency
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of
from finetuned_service.storage.schema import job_events, jobs

HELD_STATES = (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)
"""States in which a worker holds the lease."""
UNFINISHED_STATES = tuple(state for state in JobState if not state.final)


_BODY: TypeAdapter[EventBody] = TypeAdapter(EventBody)


class LeaseLost(Exception):
    """Another worker has taken the job over."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's hold on one job."""

    job_id: str
    owner: str
    epoch: int


@dataclass(frozen=True, slots=True)
class JobFilter:
    states: tuple[JobState, ...] = ()
    kind: str = ""
    adapter: str = ""


def _now() -> datetime:
    return datetime.now(UTC)


class JobStore:
    """Jobs and their events. Every method is one transaction."""

    def __init__(self, database: Database, max_events: int = 10_000) -> None:
        """`max_events` of a job are kept; older ones are trimmed."""
        self._database = database
        self._max_events = max_events

    def create(self, job: Job, request: RequestKey) -> Job:
        """Store a new QUEUED job under a fresh id, or return the one this request made before."""
        with self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            if made is not None:
                return self._load(connection, ResourceName.parse(made, "jobs"))
            kind = job.spec.kind
            job = job.model_copy(update={"id": f"{kind}-{secrets.token_hex(5)}"})
            connection.execute(
                insert(jobs).values(
                    tenant=job.tenant,
                    id=job.id,
                    kind=kind,
                    state=job.state,
                    adapter=_adapter_id(job),
                    dataset_ids=" ".join(_dataset_ids(job)),
                    document=job.model_dump_json(),
                    first_event=1,
                    last_event=0,
                    lease_owner="",
                    lease_epoch=0,
                    lease_until=0.0,
                )
            )
            job = _append(connection, job, [StateChanged(state=job.state, attempt=job.attempt)])
            idempotency.remember(connection, request, job.name, time.time())
            return job

    def made_by(self, request: RequestKey) -> Job | None:
        """The job that this request made before, or None."""
        with self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            return None if made is None else self._load(connection, ResourceName.parse(made, "jobs"))

    def get(self, tenant: str, job_id: str) -> Job:
        with self._database.read() as connection:
            return self._load(connection, ResourceName(tenant, "jobs", job_id))

    def list(self, tenant: str, wanted: JobFilter, page: PageRequest) -> Page[Job]:
        """Newest first."""
        query = select(jobs.c.sequence, jobs.c.document).where(jobs.c.tenant == tenant)
        if wanted.states:
            query = query.where(jobs.c.state.in_(wanted.states))
        if wanted.kind:
            query = query.where(jobs.c.kind == wanted.kind)
        if wanted.adapter:
            query = query.where(jobs.c.adapter == wanted.adapter)
        before = page.after_number(default=2**62)
        query = query.where(jobs.c.sequence < before).order_by(jobs.c.sequence.desc()).limit(page.size + 1)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return page_of(
            [(str(row.sequence), Job.model_validate_json(row.document)) for row in rows], page.size
        )

    def last_event(self, tenant: str, job_id: str) -> tuple[int, JobState]:
        """The newest event's number and the state, cheaply, for watchers."""
        query = select(jobs.c.last_event, jobs.c.state).where(jobs.c.tenant == tenant, jobs.c.id == job_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound.resource(str(ResourceName(tenant, "jobs", job_id)))
        return int(row.last_event), JobState(row.state)

    def events(self, tenant: str, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Events with numbers above `after`, oldest first.

        Raises:
            OutOfRange: if events after the cursor are no longer kept.
        """
        name = ResourceName(tenant, "jobs", job_id)
        with self._database.read() as connection:
            first = connection.scalar(
                select(jobs.c.first_event).where(jobs.c.tenant == tenant, jobs.c.id == job_id)
            )
            if first is None:
                raise NotFound.resource(str(name))
            if 0 < after < first - 1:
                raise OutOfRange(
                    f"events of {name} up to {first - 1} are no longer kept; start again with after_event 0",
                    metadata={"first_kept": str(first)},
                )
            rows = connection.execute(
                select(job_events)
                .where(job_events.c.job_id == job_id, job_events.c.number > after)
                .order_by(job_events.c.number)
                .limit(limit)
            ).all()
        return [_event(row) for row in rows]

    def event_page(self, tenant: str, job_id: str, page: PageRequest) -> Page[JobEvent]:
        """Events, oldest first."""
        found = self.events(tenant, job_id, page.after_number(default=0), page.size + 1)
        return page_of([(str(event.number), event) for event in found], page.size)

    def cancel(self, tenant: str, job_id: str) -> Job:
        """QUEUED and PAUSED end at once; a running one is told to stop.

        Raises:
            JobStateConflict: if it is finished.
        """
        with self._database.begin() as connection:
            job = self._load(connection, ResourceName(tenant, "jobs", job_id))
            if job.state is JobState.CANCELLING:
                return job
            target = JobState.CANCELLING if job.state in HELD_STATES else JobState.CANCELLED
            return _move(connection, job, target, StateReason.USER)

    def claim(self, owner: str, lease_seconds: float) -> tuple[Job, Lease] | None:
        """Take the oldest QUEUED job, or None if there is none."""
        with self._database.begin() as connection:
            row = connection.execute(
                select(jobs.c.document, jobs.c.lease_epoch)
                .where(jobs.c.state == JobState.QUEUED)
                .order_by(jobs.c.sequence)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if row is None:
                return None
            job = Job.model_validate_json(row.document)
            lease = Lease(job.id, owner, int(row.lease_epoch) + 1)
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job.id)
                .values(lease_owner=owner, lease_epoch=lease.epoch, lease_until=time.time() + lease_seconds)
            )
            if job.start_time is None:
                job = job.model_copy(update={"start_time": _now()})
            return _move(connection, job, JobState.RUNNING, StateReason.NONE), lease

    def renew(self, lease: Lease, lease_seconds: float) -> JobState:
        """Keep the lease, and learn whether the job is to be stopped."""
        with self._database.begin() as connection:
            job = self._held(connection, lease)
            connection.execute(
                update(jobs).where(jobs.c.id == lease.job_id).values(lease_until=time.time() + lease_seconds)
            )
            return job.state

    def record(self, lease: Lease, change: Callable[[Job], Job], bodies: Sequence[EventBody]) -> Job:
        """Apply a change to the job's record and append its events, under the lease."""
        with self._database.begin() as connection:
            job = _append(connection, change(self._held(connection, lease)), bodies)
            self._trim(connection, job)
            return job

    def release(
        self,
        lease: Lease,
        state: JobState,
        *,
        reason: StateReason = StateReason.NONE,
        change: Callable[[Job], Job] = lambda job: job,
        also: Callable[[Connection, Job], Job] = lambda _connection, job: job,
    ) -> Job:
        """End the hold on a job, in one transaction with what `also` publishes.

        A job that was to be cancelled and is given back ends as CANCELLED.
        """
        with self._database.begin() as connection:
            job = change(self._held(connection, lease))
            job = also(connection, job)
            if job.state is JobState.CANCELLING and state is JobState.QUEUED:
                state, reason = JobState.CANCELLED, StateReason.USER
            connection.execute(
                update(jobs).where(jobs.c.id == lease.job_id).values(lease_owner="", lease_until=0.0)
            )
            return _move(connection, job, state, reason)

    def recover(self) -> int:
        """Give back every job whose worker let its lease run out; returns how many."""
        with self._database.begin() as connection:
            rows = connection.execute(
                select(jobs.c.document).where(
                    and_(jobs.c.state.in_(HELD_STATES), jobs.c.lease_until < time.time())
                )
            ).all()
            for row in rows:
                job = Job.model_validate_json(row.document)
                # The epoch rises so that the lost worker, should it come back, is refused.
                connection.execute(
                    update(jobs).where(jobs.c.id == job.id).values(lease_epoch=jobs.c.lease_epoch + 1)
                )
                if job.state is JobState.CANCELLING:
                    _move(connection, job, JobState.CANCELLED, StateReason.USER)
                else:
                    _move(connection, job, JobState.QUEUED, StateReason.WORKER_LOST)
            return len(rows)

    def expire(self, owner: str) -> None:
        """Let the leases of an owner that is known to be dead run out now."""
        with self._database.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.lease_owner == owner).values(lease_until=0.0))

    def uses_dataset(self, tenant: str, dataset_id: str) -> str:
        """The name of an unfinished job that uses the dataset, or ''."""
        query = select(jobs.c.id, jobs.c.dataset_ids).where(
            jobs.c.tenant == tenant, jobs.c.state.in_(UNFINISHED_STATES)
        )
        with self._database.read() as connection:
            for row in connection.execute(query):
                if dataset_id in row.dataset_ids.split():
                    return str(ResourceName(tenant, "jobs", row.id))
        return ""

    def using_base(self, base: str) -> list[str]:
        """Names of unfinished jobs, of all tenants, that need the base."""
        query = select(jobs.c.document).where(jobs.c.state.in_(UNFINISHED_STATES))
        with self._database.read() as connection:
            found = [Job.model_validate_json(row.document) for row in connection.execute(query)]
        return [job.name for job in found if job.spec.base == base]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, for metrics."""
        counts = {str(state): 0 for state in JobState}
        with self._database.read() as connection:
            for row in connection.execute(select(jobs.c.state)):
                counts[row.state] += 1
        return counts

    def unfinished(self, tenant: str) -> int:
        with self._database.read() as connection:
            query = select(jobs.c.id).where(
                jobs.c.tenant == tenant, or_(*(jobs.c.state == state for state in UNFINISHED_STATES))
            )
            return len(connection.execute(query).all())

    def _trim(self, connection: Connection, job: Job) -> None:
        first = job.last_event - self._max_events + 1
        if first > 1:
            connection.execute(
                delete(job_events).where(job_events.c.job_id == job.id, job_events.c.number < first)
            )
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(first_event=first))

    def _load(self, connection: Connection, name: ResourceName) -> Job:
        document = connection.scalar(
            select(jobs.c.document)
            .where(jobs.c.tenant == name.tenant, jobs.c.id == name.id)
            .with_for_update()
        )
        if document is None:
            raise NotFound.resource(str(name))
        return Job.model_validate_json(document)

    def _held(self, connection: Connection, lease: Lease) -> Job:
        row = connection.execute(
            select(jobs.c.document, jobs.c.lease_epoch, jobs.c.lease_owner)
            .where(jobs.c.id == lease.job_id)
            .with_for_update()
        ).one_or_none()
        if row is None or (row.lease_epoch, row.lease_owner) != (lease.epoch, lease.owner):
            raise LeaseLost(lease.job_id)
        return Job.model_validate_json(row.document)


def _adapter_id(job: Job) -> str:
    return job.spec.adapter.rsplit("/", 1)[-1] if isinstance(job.spec, TrainSpec) else ""


def _dataset_ids(job: Job) -> list[str]:
    names = [job.spec.dataset]
    if isinstance(job.spec, TrainSpec):
        names.append(job.spec.eval_dataset)
    return [name.rsplit("/", 1)[-1] for name in names if name]


def _move(connection: Connection, job: Job, state: JobState, reason: StateReason) -> Job:
    if state not in NEXT_STATES[job.state]:
        allowed = ", ".join(sorted(NEXT_STATES[job.state])) or "none: it is finished"
        raise JobStateConflict(
            f"{job.name} is {job.state} and cannot become {state}; possible next states: {allowed}",
            metadata={"state": job.state},
        )
    changes: dict[str, object] = {"state": state, "state_reason": reason}
    if state.final:
        changes["end_time"] = _now()
    if (job.state, state) == (JobState.RUNNING, JobState.QUEUED) and reason is StateReason.WORKER_LOST:
        changes["attempt"] = job.attempt + 1
    job = job.model_copy(update=changes)
    return _append(connection, job, [StateChanged(state=state, reason=reason, attempt=job.attempt)])


def _append(connection: Connection, job: Job, bodies: Sequence[EventBody]) -> Job:
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
        .values(state=job.state, last_event=job.last_event, document=job.model_dump_json())
    )
    return job


def _event(row: Row[tuple[object, ...]]) -> JobEvent:
    return JobEvent.model_validate(
        {
            "number": row.number,
            "time": datetime.fromtimestamp(row.time, UTC),
            "body": _BODY.validate_json(row.body),
        }
    )
