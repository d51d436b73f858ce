"""Finds what may go: rows that have expired, and files that no row names. Changes nothing.

`collect.py` removes it, and asks again before each removal: what is found here may be old by then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select

from finetuned_service.adapters.aliases import NAMED
from finetuned_service.jobs.rows import UNFINISHED_STATES
from finetuned_service.jobs.store import HAS_VERSION
from finetuned_service.storage.continued import IS_CONTINUED
from finetuned_service.storage.database import Database
from finetuned_service.storage.retention import Retention
from finetuned_service.storage.schema import adapter_versions, datasets, job_events, jobs, uploads

SCRATCH_SECONDS = 24 * 3600
"""Nothing that is still being made has been left alone for so long."""
_SCRATCH = (
    "staging/*",
    "datasets/.*",
    "adapters/.*",
    "bases/.*",
    "bases/*/.*",
    "tenants/*/bases/.*",
    "tenants/*/bases/*/.*",
)
"""What crashes leave: names of what is being made or was being deleted (`storage/files.py`)."""
_VERSION_NAME = re.compile(r'"tenants/([a-z0-9-]+)/adapters/([a-z0-9-]+)/versions/([0-9]+)"')

VersionKey = tuple[str, str, int]
"""Tenant, adapter, number."""


class Kind(StrEnum):
    """What goes, in the order in which it goes: rows before the files that they name."""

    ADAPTER_VERSION = "adapter version"
    JOB = "job"
    JOB_EVENTS = "job events"
    UPLOAD = "upload"
    ADAPTER_FILES = "adapter files"
    DATASET_FILE = "dataset file"
    UPLOAD_FILE = "upload file"
    JOB_FILES = "job files"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that may go."""

    kind: Kind
    name: str
    """Of the resource; of files, their path in the data directory."""
    size_bytes: int
    """Of a version or an upload 0: its files are counted for themselves."""


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Seconds since the epoch before which things have expired; None for what does not expire."""

    jobs: float | None
    job_events: float | None
    versions: float | None
    uploads: float

    @classmethod
    def at(cls, now: float, kept: Retention) -> Cutoffs:
        def before(seconds: float | None) -> float | None:
            return None if seconds is None else now - seconds

        return cls(
            before(kept.jobs_seconds),
            before(kept.job_events_seconds),
            before(kept.versions_seconds),
            now - kept.uploads_seconds,
        )


def expired_job(cutoffs: Cutoffs) -> ColumnElement[bool] | None:
    """Of a row of jobs. Also what a deletion asks again."""
    if cutoffs.jobs is None:
        return None
    ended = and_(jobs.c.state.not_in(UNFINISHED_STATES), jobs.c.end_time < cutoffs.jobs)
    return and_(ended, ~HAS_VERSION, ~IS_CONTINUED)


def expired_events(cutoffs: Cutoffs) -> ColumnElement[bool] | None:
    """Of a row of jobs: whether its events go."""
    if cutoffs.job_events is None:
        return None
    return and_(jobs.c.state.not_in(UNFINISHED_STATES), jobs.c.end_time < cutoffs.job_events)


def expired_version(cutoffs: Cutoffs) -> ColumnElement[bool] | None:
    """Of a row of versions. Also what a deletion asks again."""
    if cutoffs.versions is None:
        return None
    return and_(adapter_versions.c.unnamed_since < cutoffs.versions, ~NAMED)


def versions_of_unfinished_jobs(connection: Connection) -> set[VersionKey]:
    """Those that the record of an unfinished job names, whatever for: it may still need them."""
    unfinished = select(jobs.c.document).where(jobs.c.state.in_(UNFINISHED_STATES))
    return {
        (tenant, adapter, int(number))
        for document in connection.scalars(unfinished)
        for tenant, adapter, number in _VERSION_NAME.findall(document)
    }


def find_garbage(
    database: Database, data_dir: Path, kept: Retention, used_digests: Collection[str], now: float
) -> list[Garbage]:
    """Everything that may go, rows first.

    Args:
        database: the store.
        data_dir: its files.
        kept: how long things are kept.
        used_digests: adapters that calls use or that are pinned; their versions and files stay.
        now: seconds since the epoch.
    """
    with database.read() as connection:
        found = list(_Rows(connection, Cutoffs.at(now, kept), used_digests).expired())
        found += _Files(connection, data_dir, found, used_digests).unnamed()
    return found + list(_scratch(data_dir))


_has_events = exists().where(job_events.c.job_id == jobs.c.id)
_events_size = (
    select(func.coalesce(func.sum(func.length(job_events.c.body)), 0))
    .where(job_events.c.job_id == jobs.c.id)
    .scalar_subquery()
)


class _Rows:
    def __init__(self, connection: Connection, cutoffs: Cutoffs, used_digests: Collection[str]) -> None:
        self._connection = connection
        self._cutoffs = cutoffs
        self._used_digests = used_digests

    def expired(self) -> Iterator[Garbage]:
        yield from self._versions()
        going = list(self._jobs())
        yield from going
        yield from self._events({job.name for job in going})
        old = select(uploads.c.tenant, uploads.c.id).where(uploads.c.create_time < self._cutoffs.uploads)
        for row in self._connection.execute(old):
            yield Garbage(Kind.UPLOAD, f"tenants/{row.tenant}/uploads/{row.id}", 0)

    def _versions(self) -> Iterator[Garbage]:
        expired = expired_version(self._cutoffs)
        if expired is None:
            return
        needed = versions_of_unfinished_jobs(self._connection)
        for row in self._connection.execute(select(adapter_versions).where(expired)):
            if row.digest not in self._used_digests and (row.tenant, row.adapter, row.version) not in needed:
                name = f"tenants/{row.tenant}/adapters/{row.adapter}/versions/{row.version}"
                yield Garbage(Kind.ADAPTER_VERSION, name, 0)

    def _jobs(self) -> Iterator[Garbage]:
        expired = expired_job(self._cutoffs)
        if expired is not None:
            yield from self._of_jobs(Kind.JOB, expired, func.length(jobs.c.document) + _events_size)

    def _events(self, going: set[str]) -> Iterator[Garbage]:
        expired = expired_events(self._cutoffs)
        if expired is not None:
            found = self._of_jobs(Kind.JOB_EVENTS, and_(expired, _has_events), _events_size)
            # A job that goes takes its events with it.
            yield from (item for item in found if item.name not in going)

    def _of_jobs(
        self, kind: Kind, condition: ColumnElement[bool], size: ColumnElement[int]
    ) -> Iterator[Garbage]:
        query = select(jobs.c.tenant, jobs.c.id, size.label("size")).where(condition)
        for row in self._connection.execute(query):
            yield Garbage(kind, f"tenants/{row.tenant}/jobs/{row.id}", row.size)


class _Files:
    """Published files that no row names once the expired rows are gone."""

    def __init__(
        self,
        connection: Connection,
        data_dir: Path,
        expired: list[Garbage],
        used_digests: Collection[str],
    ) -> None:
        self._connection = connection
        self._data_dir = data_dir
        self._used_digests = used_digests
        self._expired = {item.name for item in expired if item.kind is not Kind.JOB_EVENTS}

    def unnamed(self) -> Iterator[Garbage]:
        yield from self._adapters()
        yield from self._datasets()
        yield from self._uploads()
        yield from self._jobs()

    def _adapters(self) -> Iterator[Garbage]:
        v = adapter_versions.c
        named = {
            row.digest.removeprefix("sha256:")
            for row in self._connection.execute(select(v.tenant, v.adapter, v.version, v.digest))
            if f"tenants/{row.tenant}/adapters/{row.adapter}/versions/{row.version}" not in self._expired
        }
        for path in _visible(self._data_dir / "adapters"):
            if path.name not in named and f"sha256:{path.name}" not in self._used_digests:
                yield self._found(Kind.ADAPTER_FILES, path)

    def _datasets(self) -> Iterator[Garbage]:
        digests = self._connection.scalars(select(datasets.c.digest).distinct())
        named = {f"{digest.removeprefix('sha256:')}.jsonl" for digest in digests}
        for path in _visible(self._data_dir / "datasets"):
            if path.name not in named:
                yield self._found(Kind.DATASET_FILE, path)

    def _uploads(self) -> Iterator[Garbage]:
        rows = self._connection.execute(select(uploads.c.tenant, uploads.c.id))
        names = {f"tenants/{row.tenant}/uploads/{row.id}" for row in rows} - self._expired
        for path in _visible(self._data_dir / "uploads"):
            for file in _visible(path):
                if f"tenants/{path.name}/uploads/{file.name}" not in names:
                    yield self._found(Kind.UPLOAD_FILE, file)

    def _jobs(self) -> Iterator[Garbage]:
        rows = self._connection.execute(select(jobs.c.tenant, jobs.c.id, jobs.c.state))
        states = {
            row.id: row.state for row in rows if f"tenants/{row.tenant}/jobs/{row.id}" not in self._expired
        }
        for path in _visible(self._data_dir / "jobs"):
            if path.name not in states:
                yield self._found(Kind.JOB_FILES, path)
            elif states[path.name] not in UNFINISHED_STATES:
                for leftover in (path / "work", path / "output"):
                    if leftover.exists():
                        yield self._found(Kind.JOB_FILES, leftover)

    def _found(self, kind: Kind, path: Path) -> Garbage:
        return Garbage(kind, str(path.relative_to(self._data_dir)), size_bytes(path))


def _scratch(data_dir: Path) -> Iterator[Garbage]:
    for pattern in _SCRATCH:
        for path in sorted(data_dir.glob(pattern)):
            if is_left_alone(path):
                yield Garbage(Kind.SCRATCH, str(path.relative_to(data_dir)), size_bytes(path))


def is_left_alone(path: Path) -> bool:
    """Whether nothing in it was written for a day."""
    times = [0.0]
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            times.append(each.lstat().st_mtime)
    return max(times) < time.time() - SCRATCH_SECONDS


def size_bytes(path: Path) -> int:
    """Of a file, or of all files of a directory; 0 for what has gone meanwhile."""
    total = 0
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            if not each.is_dir():
                total += each.lstat().st_size
    return total


def _visible(directory: Path) -> list[Path]:
    """Its entries but the hidden ones, which are being made or deleted."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
