"""How many jobs there are, and how long the oldest wait or say nothing: read once a scrape."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import and_, func, select

from finetuned_service.jobs.rows import HELD_STATES
from finetuned_service.jobs.states import JobState
from finetuned_service.storage.database import Database
from finetuned_service.storage.schema import job_events, jobs

KINDS = ("train", "quantize")


@dataclass(frozen=True, slots=True)
class JobCensus:
    """Of all tenants and all workers."""

    jobs: Mapping[tuple[str, JobState], int]
    """By kind and state; every pair is there."""
    queue_age_seconds: float
    """How long the job that waits longest has waited since it was queued, or queued again; 0 if none waits."""
    silent_seconds: float
    """How long the running job that has said nothing for longest is silent; 0 if none runs."""


def take_census(database: Database) -> JobCensus:
    """Count the jobs of the store.

    Raises:
        Unavailable: the store does not answer now.
    """
    found = {(kind, state): 0 for kind in KINDS for state in JobState}
    by_state = select(jobs.c.kind, jobs.c.state, func.count().label("jobs")).group_by(
        jobs.c.kind, jobs.c.state
    )
    newest = and_(job_events.c.job_id == jobs.c.id, job_events.c.number == jobs.c.last_event)
    oldest = (
        select(jobs.c.state, func.min(job_events.c.time).label("time"))
        .join(job_events, newest)
        .where(jobs.c.state.in_((JobState.QUEUED, *HELD_STATES)))
        .group_by(jobs.c.state)
    )
    with database.read() as connection:
        for row in connection.execute(by_state):
            found[row.kind, JobState(row.state)] = row.jobs
        now = time.time()
        ages = {JobState(row.state): max(0.0, now - row.time) for row in connection.execute(oldest)}
    return JobCensus(
        jobs=found,
        queue_age_seconds=ages.pop(JobState.QUEUED, 0.0),
        silent_seconds=max(ages.values(), default=0.0),
    )
