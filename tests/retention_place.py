"""A data directory with its stores, and ways to make what is in it old."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.datasets.validation import DataLimits
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.rows import append_events, move_job
from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.values import Job
from finetuned_service.retention.collect import Collector
from finetuned_service.retention.garbage import Garbage
from finetuned_service.storage import schema
from finetuned_service.storage.database import Database
from finetuned_service.storage.retention import DAY_SECONDS, Retention
from finetuned_service.vocabulary import Method, Task
from sqlalchemy import select, update
from tiny_jobs import NO_REQUEST, TENANT, train_job
from tiny_limits import stored_limits

DAYS_30 = 30 * DAY_SECONDS
KEPT = Retention(jobs_seconds=DAYS_30, job_events_seconds=DAYS_30 / 2, versions_seconds=DAYS_30)
LONG_AGO = time.time() - 10 * DAYS_30
ROWS = b'{"prompt": "say it", "completion": "done"}\n'


class Place:
    """A data directory with its stores."""

    def __init__(self, directory: Path, kept: Retention = KEPT) -> None:
        self.directory = directory
        self.database = Database(f"sqlite:///{directory / 'finetuned.db'}")
        for room in ("adapters", "jobs", "staging"):
            (directory / room).mkdir(exist_ok=True)
        limits = stored_limits(directory)
        self.registry = AdapterRegistry(self.database, directory / "adapters", limits, kept)
        self.jobs = JobStore(self.database, limits, kept)
        self.datasets = DatasetStore(
            self.database, directory, DataLimits(), (), lambda _c, _t, _d: "", limits, kept
        )
        self.collector = Collector(self.database, directory, kept)

    def version(self, letter: str, *, adapter: str = "redact", job: str = "", tenant: str = TENANT) -> str:
        staged = self.directory / "staging" / f"{letter}-{time.monotonic_ns()}"
        staged.mkdir()
        (staged / "adapter_model.safetensors").write_text(letter * 100)

        def manifest(name: str) -> AdapterManifest:
            return AdapterManifest(
                name=name,
                digest=f"sha256:{letter * 64}",
                base_digest="sha256:" + "b" * 64,
                base_root_digest="sha256:" + "b" * 64,
                method=Method.LORA,
                task=Task.TEXT_GENERATION,
                lineage={"job": job},
                parameters=1,
                modules=1,
                rank=1,
                size_bytes=100,
                create_time=datetime.now(UTC),
            )

        return self.registry.import_version(tenant, adapter, staged, manifest, 1, NO_REQUEST).name

    def job(self, state: JobState = JobState.SUCCEEDED) -> Job:
        """A job with two events that ended just now, and what its process left."""
        job = self.jobs.create(train_job(), NO_REQUEST)
        with self.database.begin() as connection:
            if state is not JobState.QUEUED:
                job = move_job(connection, job, JobState.RUNNING, StateReason.NONE)
            job = append_events(connection, job, [Notice(severity="INFO", text="half")])
            if state.final:
                job = move_job(connection, job, state, StateReason.NONE)
        (self.directory / "jobs" / job.id / "work").mkdir(parents=True)
        (self.directory / "jobs" / job.id / "log").write_text("a log")
        (self.directory / "jobs" / job.id / "work" / "checkpoint").write_text("a checkpoint")
        return job

    def age(self, seconds: float = 10 * DAYS_30) -> None:
        """Everything that counts happened so long ago."""
        then = time.time() - seconds
        with self.database.begin() as connection:
            ended = schema.jobs.c.end_time.is_not(None)
            connection.execute(update(schema.jobs).where(ended).values(end_time=then))
            unnamed = schema.adapter_versions.c.unnamed_since.is_not(None)
            connection.execute(update(schema.adapter_versions).where(unnamed).values(unnamed_since=then))
            connection.execute(update(schema.uploads).values(create_time=then))

    def sweep(self, used: tuple[str, ...] = ()) -> list[Garbage]:
        return list(self.collector.collect(self.collector.find(used)))

    def files(self) -> set[str]:
        found = {path for path in self.directory.rglob("*") if path.is_file()}
        return {str(path.relative_to(self.directory)) for path in found if "finetuned.db" not in path.name}

    def versions(self) -> list[str]:
        with self.database.read() as connection:
            rows = connection.execute(select(schema.adapter_versions).order_by("adapter", "version"))
            return [f"{row.adapter}/{row.version}" for row in rows]

    def check_named_files(self) -> None:
        """Whatever a row names is there: the one thing that must hold at every moment."""
        with self.database.read() as connection:
            for digest in connection.scalars(select(schema.adapter_versions.c.digest)):
                assert (self.directory / "adapters" / digest.removeprefix("sha256:")).is_dir()
            for digest in connection.scalars(select(schema.datasets.c.digest)):
                assert (self.directory / "datasets" / f"{digest.removeprefix('sha256:')}.jsonl").is_file()

    def close(self) -> None:
        self.database.close()
