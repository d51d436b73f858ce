"""The durable store of jobs as callers see it: create, look, watch, pause, resume, cancel, delete.

Workers have a side of their own (`jobs/queue.py`); both write through `jobs/rows.py`, which knows the
legal transitions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, and_, delete, exists, insert, select

from finetuned_service.errors import InvalidField, JobStateConflict, NotFound, OutOfRange, ResourceInUse
from finetuned_service.jobs.events import EstimateBasis, EventBody, JobEvent, Notice, StateChanged
from finetuned_service.jobs.rows import (
    HELD_STATES,
    UNFINISHED_STATES,
    append_events,
    load_job,
    move_job,
    parse_event,
    readable_job,
)
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.jobs.values import Job
from finetuned_service.names import ResourceName
from finetuned_service.storage import idempotency
from finetuned_service.storage.continued import refuse_continued
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import remove_directory
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of, page_that_fits
from finetuned_service.storage.retention import DEFAULT_RETENTION, Retention, expires
from finetuned_service.storage.schema import adapter_versions, job_events, jobs
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.stored import StoredLimits, new_version

HAS_VERSION = exists().where(adapter_versions.c.job == jobs.c.id)
"""Of a row of jobs: whether the version that it made exists; its record is kept as long."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    states: tuple[JobState, ...] = ()
    kind: str = ""
    adapter: str = ""


class JobStore:
    """Jobs and their events. Every method is one transaction."""

    def __init__(
        self,
        database: Database,
        limits: StoredLimits,
        retention: Retention = DEFAULT_RETENTION,
        directory: Path | None = None,
    ) -> None:
        """`limits` is what a tenant may keep; in `directory` each job has one of its own, which goes when it
        is deleted (without it: with the next sweep).
        """
        self._database = database
        self._limits = limits
        self._retention = retention
        self._directory = directory

    def create(self, job: Job, request: RequestKey, *, reserved_bytes: int = 0, notice: str = "") -> Job:
        """Store a new QUEUED job under a fresh id, or return the one this request made before.

        The job holds a place for its result until it ends: `reserved_bytes` of storage, an adapter's
        version, an adapter. `notice` is told right after its state, where there is one.

        Raises:
            QuotaExceeded: a limit of the tenant is reached.
        """
        with self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            if made is not None:
                return _made_before(connection, made)
            self._admit(connection, job, reserved_bytes)
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
                    reserved_bytes=reserved_bytes,
                    priority=job.priority.level,
                )
            )
            begun: list[EventBody] = [StateChanged(state=job.state, attempt=job.attempt)]
            job = append_events(connection, job, [*begun, Notice(text=notice)] if notice else begun)
            idempotency.remember(connection, request, job.name, time.time())
            return job

    def made_by(self, request: RequestKey) -> Job | None:
        """The job that this request made before, or None."""
        with self._database.read() as connection:
            made = idempotency.recall(connection, request, time.time())
            return None if made is None else _made_before(connection, made)

    def refuse_full(self, job: Job, reserved_bytes: int = 1) -> None:
        """Say early what `create` would say late, also before the size of the result is known; nothing is reserved.

        Raises:
            QuotaExceeded: a limit of the tenant is reached.
        """
        with self._database.read() as connection:
            self._admit(connection, job, reserved_bytes)

    def _admit(self, connection: Connection, job: Job, reserved_bytes: int) -> None:
        wanted = {Limit.UNFINISHED_JOBS: 1, Limit.STORAGE_BYTES: reserved_bytes}
        if isinstance(job.spec, TrainSpec):
            wanted |= new_version(connection, job.tenant, _adapter_id(job))
        self._limits.admit(connection, job.tenant, wanted)

    def get(self, tenant: str, job_id: str) -> Job:
        with self._database.read() as connection:
            job = load_job(connection, ResourceName(tenant, "jobs", job_id))
            return self._expiring(job, kept=bool(_version_of(connection, tenant, job_id)))

    def list(self, tenant: str, wanted: JobFilter, page: PageRequest) -> Page[Job]:
        """Newest first, without those whose records this build cannot read.

        A token names the page's last job. Its place among the jobs of all tenants would tell how many they have.
        """
        query = select(jobs.c.id, jobs.c.document, HAS_VERSION.label("kept")).where(jobs.c.tenant == tenant)
        if wanted.states:
            query = query.where(jobs.c.state.in_(wanted.states))
        if wanted.kind:
            query = query.where(jobs.c.kind == wanted.kind)
        if wanted.adapter:
            query = query.where(jobs.c.adapter == wanted.adapter)
        query = query.order_by(jobs.c.sequence.desc()).limit(page.size + 1)
        with self._database.read() as connection:
            if page.after:
                query = query.where(jobs.c.sequence < _sequence_of(connection, tenant, page.after))
            rows = ((row.id, row) for row in connection.execute(query))
            # What a record says is not longer in a message.
            listed = page_that_fits(rows, page, lambda row: len(row.document.encode()))
        found = [(row, readable_job(row.id, row.document)) for row in listed.items]
        readable = (self._expiring(job, kept=row.kept) for row, job in found if job is not None)
        return Page(tuple(readable), listed.next_token)

    def _expiring(self, job: Job, *, kept: bool) -> Job:
        ended = job.end_time.timestamp() if job.end_time else None
        return job.model_copy(
            update={
                "expire_time": None if kept else expires(ended, self._retention.jobs_seconds),
                "events_expire_time": expires(ended, self._retention.job_events_seconds),
            }
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
        return [parse_event(row) for row in rows]

    def event_page(self, tenant: str, job_id: str, page: PageRequest) -> Page[JobEvent]:
        """Events, oldest first."""
        found = self.events(tenant, job_id, page.after_number(default=0), page.size + 1)
        return page_of([(str(event.number), event) for event in found], page)

    def cancel(self, tenant: str, job_id: str) -> Job:
        """QUEUED and PAUSED end at once; a running one is told to stop.

        Raises:
            JobStateConflict: if it is finished.
        """
        with self._database.begin() as connection:
            job = load_job(connection, ResourceName(tenant, "jobs", job_id), to_change=True)
            if job.state is JobState.CANCELLING:
                return job
            target = JobState.CANCELLING if job.state in HELD_STATES else JobState.CANCELLED
            return move_job(connection, job, target, StateReason.USER)

    def pause(self, tenant: str, job_id: str) -> Job:
        """A queued job is PAUSED at once; a running one is told to write a checkpoint and stop. It stays so
        until `resume`, also where a full disk had paused it.

        Raises:
            JobStateConflict: it is finished, or will be.
        """
        with self._database.begin() as connection:
            job = load_job(connection, ResourceName(tenant, "jobs", job_id), to_change=True)
            match job.state:
                case JobState.PAUSING | JobState.PAUSED:
                    if job.state_reason is StateReason.USER:
                        return job
                    job = job.model_copy(update={"state_reason": StateReason.USER})
                    told = StateChanged(state=job.state, reason=job.state_reason, attempt=job.attempt)
                    return append_events(connection, job, [told])
                case JobState.RUNNING:
                    return move_job(connection, job, JobState.PAUSING, StateReason.USER)
                case _:
                    return move_job(connection, job, JobState.PAUSED, StateReason.USER)

    def resume(self, tenant: str, job_id: str) -> Job:
        """Queue a paused job again, from its checkpoint; one that is queued or runs is left as it is.

        Raises:
            JobStateConflict: it is still stopping, or finished.
        """
        with self._database.begin() as connection:
            job = load_job(connection, ResourceName(tenant, "jobs", job_id), to_change=True)
            if job.state in {JobState.QUEUED, JobState.RUNNING}:
                return job
            if job.state is not JobState.PAUSED:
                raise JobStateConflict(
                    f"{job.name} is {job.state}; only a PAUSED job can be resumed"
                    + ("" if job.state.final else ": wait until it has stopped"),
                    metadata={"state": job.state},
                )
            # The reason does not tell whether it has been shown: a pause of the user's may have come on top.
            if job.estimate is not None and job.estimate.basis is EstimateBasis.MEASURED:
                job = job.model_copy(update={"pause_after_estimate": False})
            return move_job(connection, job, JobState.QUEUED, StateReason.USER)

    def delete(self, tenant: str, job_id: str) -> None:
        """Remove a finished job's record, its events and its files; also those of one that no worker holds and whose
        record cannot be read.

        Raises:
            JobStateConflict: it is not finished.
            ResourceInUse: the version that it made exists, whose lineage is this record, or an unfinished job goes on
                from the checkpoint that it has kept.
        """
        with self._database.begin() as connection:
            name, own = (
                ResourceName(tenant, "jobs", job_id),
                and_(jobs.c.tenant == tenant, jobs.c.id == job_id),
            )
            row = connection.execute(select(jobs).where(own).with_for_update()).one_or_none()
            if row is None:
                raise NotFound.resource(str(name))
            can_end = row.lease_until > time.time() or readable_job(job_id, row.document) is not None
            if can_end and not JobState(row.state).final:
                raise JobStateConflict(
                    f"{name} is {row.state}; only a finished job can be deleted: cancel it first",
                    metadata={"state": row.state},
                )
            version = _version_of(connection, tenant, job_id)
            if version:
                raise ResourceInUse(
                    f"{version} was made by {name} and exists; its lineage is this record. Delete the version first",
                    metadata={"used_by": version},
                )
            refuse_continued(connection, str(name))
            connection.execute(delete(jobs).where(own))
        if self._directory is not None:
            remove_directory(self._directory / job_id)

    @staticmethod
    def uses_dataset(connection: Connection, tenant: str, dataset_id: str) -> str:
        """The name of an unfinished job that uses the dataset, or '', as the caller's transaction sees it."""
        query = select(jobs.c.id, jobs.c.dataset_ids).where(
            jobs.c.tenant == tenant, jobs.c.state.in_(UNFINISHED_STATES)
        )
        for row in connection.execute(query).all():
            if dataset_id in row.dataset_ids.split():
                return str(ResourceName(tenant, "jobs", row.id))
        return ""

    def using_base(self, base: str) -> list[str]:
        """Names of unfinished jobs, of all tenants, that need the base."""
        query = select(jobs).where(jobs.c.state.in_(UNFINISHED_STATES))
        # In the text: a record that cannot be read now may be again, and then needs its base.
        named = f'"base":"{base}"'
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [str(ResourceName(row.tenant, "jobs", row.id)) for row in rows if named in row.document]


def _sequence_of(connection: Connection, tenant: str, job_id: str) -> int:
    """The place of the job that a page token names.

    Raises:
        InvalidField: it is none of the tenant's, or has expired between two pages.
    """
    found = connection.scalar(select(jobs.c.sequence).where(jobs.c.tenant == tenant, jobs.c.id == job_id))
    if found is None:
        raise InvalidField.one(
            "page_token", "is not a next_page_token of this list, or its job is gone; leave it empty"
        )
    return int(found)


def _made_before(connection: Connection, name: str) -> Job:
    """The job that a request has made before.

    Raises:
        NotFound: it has been deleted since.
    """
    try:
        return load_job(connection, ResourceName.parse(name, "jobs"))
    except NotFound:
        raise idempotency.deleted_since(name) from None


def _version_of(connection: Connection, tenant: str, job_id: str) -> str:
    """The name of the version that the job made, or '' if there is none now."""
    v = adapter_versions.c
    made = connection.execute(select(v.adapter, v.version).where(v.job == job_id).limit(1)).one_or_none()
    return f"tenants/{tenant}/adapters/{made.adapter}/versions/{made.version}" if made else ""


def _adapter_id(job: Job) -> str:
    return job.spec.adapter.rsplit("/", 1)[-1] if isinstance(job.spec, TrainSpec) else ""


def _dataset_ids(job: Job) -> list[str]:
    names = [job.spec.dataset]
    if isinstance(job.spec, TrainSpec):
        names.append(job.spec.eval_dataset)
    return [name.rsplit("/", 1)[-1] for name in names if name]
