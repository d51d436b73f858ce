"""Removes what `garbage.py` found. Safe beside running imports, jobs and requests, and after any crash.

Rows go first, each under the condition that made it garbage; files later, each inside a writing
transaction that sees no row naming it. A publication moves its files inside the writing transaction that
adds their row, so it comes wholly before (the file stays) or wholly after (it brings the file again). A
crash in between leaves files that no row names: garbage of the next time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, literal, select, update

from finetuned_service.jobs.rows import UNFINISHED_STATES
from finetuned_service.names import AdapterSelector, ResourceName
from finetuned_service.retention.garbage import (
    Cutoffs,
    Garbage,
    Kind,
    expired_events,
    expired_job,
    expired_version,
    find_garbage,
    is_left_alone,
    versions_of_unfinished_jobs,
)
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import hide_directory
from finetuned_service.storage.retention import Retention
from finetuned_service.storage.schema import adapter_versions, datasets, job_events, jobs, uploads


class Collector:
    """Removes garbage of one data directory."""

    def __init__(self, database: Database, data_dir: Path, kept: Retention) -> None:
        self._database = database
        self._data_dir = data_dir
        self._kept = kept

    def find(self, used_digests: Collection[str] = ()) -> list[Garbage]:
        """What `collect` would remove now; `used_digests` are adapters in use, whose versions and files stay."""
        return find_garbage(self._database, self._data_dir, self._kept, used_digests, time.time())

    def collect(self, found: Collection[Garbage]) -> Iterator[Garbage]:
        """Remove what was found and still is garbage; yields each that is gone."""
        cutoffs = Cutoffs.at(time.time(), self._kept)
        remove: dict[Kind, Callable[[Garbage, Cutoffs], bool]] = {
            Kind.ADAPTER_VERSION: self._version,
            Kind.JOB: self._job,
            Kind.JOB_EVENTS: self._events,
            Kind.UPLOAD: self._upload,
            Kind.ADAPTER_FILES: self._adapter_files,
            Kind.DATASET_FILE: self._dataset_file,
            Kind.UPLOAD_FILE: self._upload_file,
            Kind.JOB_FILES: self._job_files,
            Kind.SCRATCH: self._scratch,
        }
        order = list(Kind)
        for item in sorted(found, key=lambda item: order.index(item.kind)):
            if remove[item.kind](item, cutoffs):
                yield item

    def _version(self, item: Garbage, cutoffs: Cutoffs) -> bool:
        selector = AdapterSelector.parse(item.name)
        key = (selector.tenant, selector.adapter, selector.version or 0)
        v = adapter_versions.c
        own = and_(v.tenant == key[0], v.adapter == key[1], v.version == key[2])
        with self._database.begin() as connection:
            if key in versions_of_unfinished_jobs(connection):
                return False
            return _delete(connection, adapter_versions, own, expired_version(cutoffs))

    def _job(self, item: Garbage, cutoffs: Cutoffs) -> bool:
        own = jobs.c.id == ResourceName.parse(item.name, "jobs").id
        with self._database.begin() as connection:
            return _delete(connection, jobs, own, expired_job(cutoffs))

    def _events(self, item: Garbage, cutoffs: Cutoffs) -> bool:
        own = jobs.c.id == ResourceName.parse(item.name, "jobs").id
        expired = expired_events(cutoffs)
        with self._database.begin() as connection:
            if expired is None or not _exists(connection, jobs, and_(own, expired)):
                return False
            # A watcher with an old cursor is told that its events are no longer kept.
            connection.execute(update(jobs).where(own).values(first_event=jobs.c.last_event + 1))
            gone = job_events.c.job_id == ResourceName.parse(item.name, "jobs").id
            return connection.execute(delete(job_events).where(gone)).rowcount > 0

    def _upload(self, item: Garbage, cutoffs: Cutoffs) -> bool:
        name = ResourceName.parse(item.name, "uploads")
        own = and_(uploads.c.tenant == name.tenant, uploads.c.id == name.id)
        with self._database.begin() as connection:
            return _delete(connection, uploads, own, uploads.c.create_time < cutoffs.uploads)

    def _adapter_files(self, item: Garbage, _cutoffs: Cutoffs) -> bool:
        path = self._data_dir / item.name
        named = adapter_versions.c.digest == f"sha256:{path.name}"
        with self._database.begin() as connection:
            if _exists(connection, adapter_versions, named):
                return False
            hidden = hide_directory(path)
        # Outside the transaction: gigabytes take a while. What a crash leaves of it is scratch.
        return hidden is not None and _removed(hidden)

    def _dataset_file(self, item: Garbage, _cutoffs: Cutoffs) -> bool:
        path = self._data_dir / item.name
        named = datasets.c.digest == f"sha256:{path.stem}"
        with self._database.begin() as connection:
            return not _exists(connection, datasets, named) and _removed(path)

    def _upload_file(self, item: Garbage, _cutoffs: Cutoffs) -> bool:
        path = self._data_dir / item.name
        own = and_(uploads.c.tenant == path.parent.name, uploads.c.id == path.name)
        with self._database.begin() as connection:
            return not _exists(connection, uploads, own) and _removed(path)

    def _job_files(self, item: Garbage, _cutoffs: Cutoffs) -> bool:
        _, job_id, *part = Path(item.name).parts
        needed = jobs.c.id == job_id
        if part:
            needed = and_(needed, jobs.c.state.in_(UNFINISHED_STATES))
        with self._database.begin() as connection:
            if _exists(connection, jobs, needed):
                return False
        # Neither comes back: ids are not used again, and a final state is one.
        return _removed(self._data_dir / item.name)

    def _scratch(self, item: Garbage, _cutoffs: Cutoffs) -> bool:
        path = self._data_dir / item.name
        return is_left_alone(path) and _removed(path)


def _delete(
    connection: Connection, table: Table, own: ColumnElement[bool], condition: ColumnElement[bool] | None
) -> bool:
    """Delete a row if it still meets the condition."""
    if condition is None:
        return False
    return connection.execute(delete(table).where(own, condition)).rowcount > 0


def _exists(connection: Connection, table: Table, condition: ColumnElement[bool]) -> bool:
    return (
        connection.execute(select(literal(1)).select_from(table).where(condition).limit(1)).first()
        is not None
    )


def _removed(path: Path) -> bool:
    """Remove a file or a directory; False if it was gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
