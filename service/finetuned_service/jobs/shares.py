"""Whose job is next: the highest priority first; of one priority, the tenant that workers have had the least
time for lately.

What a tenant has used counts half after every hour (as in Slurm's multifactor priority), so that nobody pays
for long, and nobody saves up. Small jobs of one tenant could later share a process: what is charged is the
time of a worker, whatever runs in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, select, update

from finetuned_service.jobs.rows import readable_job
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.values import Job
from finetuned_service.storage.schema import job_events, jobs, tenant_job_time

HALF_LIFE_SECONDS = 3600.0
LEAST_CHARGE_SECONDS = 60.0
"""A job that has just begun counts so much already: else a tenant would get all places in one moment."""
_HELD = ("RUNNING", "PAUSING", "CANCELLING")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job."""

    job_id: str
    tenant: str
    level: int
    used_seconds: float
    """By its tenant, lately."""
    sequence: int


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that runs and is to make room."""

    job_id: str
    why: str
    """As a sentence for its user, who learns nothing of other tenants."""
    slice_over: bool = False
    """Its turn has ended; otherwise it stops for a higher priority."""


def waiting(connection: Connection, now: float) -> list[Waiting]:
    """The queued jobs in the order in which they are taken."""
    query = select(jobs.c.id, jobs.c.tenant, jobs.c.priority, jobs.c.sequence)
    rows = connection.execute(query.where(jobs.c.state == JobState.QUEUED)).all()
    used = _used(connection, now) if len({row.tenant for row in rows}) > 1 else {}
    found = [
        Waiting(row.id, row.tenant, row.priority, used.get(row.tenant, 0.0), row.sequence) for row in rows
    ]
    return sorted(found, key=lambda job: (-job.level, job.used_seconds, job.sequence))


def charge(connection: Connection, job_id: str, now: float) -> None:
    """Count the time that a worker had for a job against its tenant; the worker lets it go now, or was lost: then its lease
    had run out before, and nobody worked since.
    """
    query = select(jobs.c.tenant, jobs.c.claim_time, jobs.c.lease_until).where(jobs.c.id == job_id)
    row = connection.execute(query).one()
    if row.claim_time is None:
        return
    held_seconds = max(0.0, min(now, row.lease_until) - row.claim_time)
    known = connection.execute(
        select(tenant_job_time).where(tenant_job_time.c.tenant == row.tenant).with_for_update()
    ).one_or_none()
    total = {"used_seconds": _faded(known, now) + held_seconds, "update_time": now}
    if known is None:
        connection.execute(insert(tenant_job_time).values(tenant=row.tenant, **total))
    else:
        connection.execute(
            update(tenant_job_time).where(tenant_job_time.c.tenant == row.tenant).values(**total)
        )
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(claim_time=None))


def victim(
    connection: Connection, now: float, *, patience_seconds: float, slice_seconds: float
) -> Victim | None:
    """The job that should stop for the one that is next, or None if that one is to wait.

    Args:
        connection: of the transaction.
        now: seconds since the epoch.
        patience_seconds: how long the next job waits first; a free place is found sooner.
        slice_seconds: how long a job of the same priority runs before another tenant's turn comes; see `_turn_is_over`.
    """
    first = next((job for job in waiting(connection, now) if _can_be_taken(connection, job)), None)
    if first is None or _waited_seconds(connection, first.job_id, now) < patience_seconds:
        return None
    query = select(jobs.c.id, jobs.c.tenant, jobs.c.priority, jobs.c.claim_time, jobs.c.document)
    rows = connection.execute(query.where(jobs.c.state == JobState.RUNNING)).all()
    read = {row.id: readable_job(row.id, row.document) for row in rows if row.claim_time is not None}
    records = {job_id: job for job_id, job in read.items() if job is not None}
    running = [row for row in rows if row.id in records]
    lower = [row for row in running if row.priority < first.level]
    if lower:
        # The one that loses the least, of the lowest.
        chosen = min(lower, key=lambda row: (row.priority, -row.claim_time))
        return Victim(chosen.id, "a job of higher priority waits")
    used = _used(connection, now)
    over = [
        row
        for row in running
        if row.priority == first.level
        and _turn_is_over(records[row.id], now - row.claim_time, now, slice_seconds)
        and used[row.tenant] > used.get(first.tenant, 0.0)
    ]
    if not over:
        return None
    chosen = max(over, key=lambda row: used[row.tenant])
    ran_seconds = now - chosen.claim_time
    why = f"it has run for {ran_seconds:.0f} seconds and others wait (job_slice_seconds: {slice_seconds:.0f})"
    return Victim(chosen.id, why, slice_over=True)


def _can_be_taken(connection: Connection, job: Waiting) -> bool:
    document = connection.scalar(select(jobs.c.document).where(jobs.c.id == job.job_id))
    return document is not None and readable_job(job.job_id, document) is not None


def _turn_is_over(job: Job, ran_seconds: float, now: float, slice_seconds: float) -> bool:
    """Whether a running job has had its slice. It counts from its first step: what it does before that (encoding, the
    baseline) is done again after a stop. So long it may take one slice too, and twice as long after each time that this
    was not enough: every job comes to its steps, and what was lost is less than what it needed.
    """
    if job.steps_since is not None:
        return now - job.steps_since >= slice_seconds
    return ran_seconds >= slice_seconds * 2**job.slices_lost


def _waited_seconds(connection: Connection, job_id: str, now: float) -> float:
    query = select(job_events.c.time).join(jobs, jobs.c.id == job_events.c.job_id)
    newest = query.where(jobs.c.id == job_id, job_events.c.number == jobs.c.last_event)
    return now - float(connection.scalar(newest) or now)


def _used(connection: Connection, now: float) -> dict[str, float]:
    """Seconds that workers have had for each tenant lately, with the jobs that they hold."""
    used = {row.tenant: _faded(row, now) for row in connection.execute(select(tenant_job_time))}
    held = select(jobs.c.tenant, jobs.c.claim_time).where(jobs.c.state.in_(_HELD))
    for row in connection.execute(held):
        ran_seconds = max(LEAST_CHARGE_SECONDS, now - (now if row.claim_time is None else row.claim_time))
        used[row.tenant] = used.get(row.tenant, 0.0) + ran_seconds
    return used


def _faded(row: Row[tuple[object, ...]] | None, now: float) -> float:
    if row is None:
        return 0.0
    age_seconds = max(0.0, now - float(row.update_time))
    return float(row.used_seconds) * 0.5 ** (age_seconds / HALF_LIFE_SECONDS)
