"""Everything that one server exposes beside what it counts itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from finetuned_service.adapters.versions import names_of
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.messages import Snapshot
from finetuned_service.jobs.census import take_census
from finetuned_service.metrics.adapters import AdapterNames
from finetuned_service.metrics.engine import EngineLimits, watch_engine
from finetuned_service.metrics.jobs import watch_store
from finetuned_service.metrics.machine import watch_data_directory, watch_processes
from finetuned_service.settings import Settings
from finetuned_service.storage.database import Database


def watch_replica(
    registry: CollectorRegistry,
    settings: Settings,
    database: Database,
    engine: EngineClient,
    snapshot: Callable[[], Snapshot | None],
    job_processes: Callable[[], Sequence[int]],
) -> None:
    """Expose the engine, the store, the disk and the processes of one server.

    Args:
        registry: where.
        settings: the limits to show, and how many adapters to name.
        database: the store of jobs and of the adapters' names.
        engine: whose restarts and process to show.
        snapshot: the engine's last one; None while it does not answer.
        job_processes: ids of the job processes that this server runs.
    """

    def names(digests: Sequence[str]) -> dict[str, str]:
        with database.read() as connection:
            return names_of(connection, digests)

    watch_engine(
        registry,
        snapshot,
        lambda: engine.restarts,
        EngineLimits(
            running_sequences=settings.max_running_sequences,
            waiting_sequences=settings.max_queued_sequences,
            adapter_host_bytes=settings.adapter_host_bytes,
            adapter_device_bytes=settings.adapter_device_bytes,
        ),
        AdapterNames(settings.metrics_max_adapters, names),
        vllm_aliases=settings.metrics_vllm_aliases,
    )
    watch_store(registry, lambda: take_census(database))
    watch_data_directory(registry, settings.data_dir)
    watch_processes(
        registry,
        {
            "server": lambda: [os.getpid()],
            "engine": lambda: [] if engine.process_id is None else [engine.process_id],
            "jobs": job_processes,
        },
    )
