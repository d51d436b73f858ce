"""The settings of retention as the store wants them: seconds, None for what is kept."""

from __future__ import annotations

from finetuned_service.settings import Settings
from finetuned_service.storage.retention import DAY_SECONDS, Retention


def retention_of(settings: Settings) -> Retention:
    """How long a server with these settings keeps things."""

    def seconds(days: float | None) -> float | None:
        return None if days is None else days * DAY_SECONDS

    return Retention(
        jobs_seconds=seconds(settings.job_retention_days),
        job_events_seconds=seconds(settings.job_event_retention_days),
        versions_seconds=seconds(settings.version_retention_days),
        uploads_seconds=settings.upload_retention_days * DAY_SECONDS,
    )
