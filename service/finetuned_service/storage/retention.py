"""How long things are kept: from the settings, in seconds, where None means until somebody deletes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """What the sweep removes, and what expire times tell beforehand."""

    jobs_seconds: float | None = None
    """Finished jobs, after their end; the job of a version that exists is kept with it."""
    job_events_seconds: float | None = None
    """Events of finished jobs, after the job's end."""
    versions_seconds: float | None = None
    """Adapter versions, since no alias points to them or can go back to them."""
    uploads_seconds: float = 7 * DAY_SECONDS
    """Uploads without their end, after their start."""


DEFAULT_RETENTION = Retention()
"""Nothing that a user has made goes by itself."""


def expires(since: float | None, kept_seconds: float | None) -> datetime | None:
    """When something expires that counts from `since`, seconds since the epoch; None for never."""
    if since is None or kept_seconds is None:
        return None
    return datetime.fromtimestamp(since + kept_seconds, UTC)
