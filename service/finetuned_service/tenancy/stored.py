"""Limits on what a tenant keeps, counted in the transaction that makes more of it.

Counted anew each time from the rows and files themselves, so nothing can drift. A job holds the place of
what it will make from the moment it is accepted: its end is never refused for want of room, and the sum
never goes above the limit. Content that tenants share lies on the disk once and counts for each of them.

Free of races where writers take turns, as they do on SQLite (`storage/database.py`); on PostgreSQL a
transaction that admits must first lock something of the tenant's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, FromClause, func, select, union

from finetuned_service.storage.schema import adapter_versions, datasets, jobs, uploads
from finetuned_service.tenancy.limits import Limit, LimitsOf, LimitUse, allowed, refuse_above

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")
"""Of jobs, as `jobs/values.py` has them."""


class StoredLimits:
    """The limits on what is kept, over the tables and the files of one data directory."""

    def __init__(self, limits_of: LimitsOf, data_directory: Path) -> None:
        self._limits_of = limits_of
        self._data_directory = data_directory

    def admit(self, connection: Connection, tenant: str, wanted: Mapping[Limit, int]) -> None:
        """Refuse to make more than is allowed.

        Args:
            connection: the writing transaction that makes it; reading is enough to refuse early.
            tenant: whose it is.
            wanted: how much more of each limit; what is below 1 needs no place.

        Raises:
            QuotaExceeded: of the first limit that has no room.
        """
        for limit, more in wanted.items():
            if more > 0:
                refuse_above(tenant, self._use(connection, tenant, limit), more)

    def usage(self, connection: Connection, tenant: str) -> list[LimitUse]:
        """What a tenant keeps, limit by limit."""
        return [self._use(connection, tenant, limit) for limit in Limit if not limit.per_replica]

    def _use(self, connection: Connection, tenant: str, limit: Limit) -> LimitUse:
        return LimitUse(limit, self._used(connection, tenant, limit), allowed(self._limits_of(tenant), limit))

    def _used(self, connection: Connection, tenant: str, limit: Limit) -> int:
        match limit:
            case Limit.STORAGE_BYTES:
                return self._bytes(connection, tenant)
            case Limit.DATASETS:
                return _count(connection, datasets, tenant) + _count(connection, uploads, tenant)
            case Limit.ADAPTERS:
                return len(_adapters(connection, tenant))
            case Limit.ADAPTER_VERSIONS:
                return _count(connection, adapter_versions, tenant) + _count(
                    connection, jobs, tenant, _unfinished() & (jobs.c.adapter != "")
                )
            case Limit.UNFINISHED_JOBS:
                return _count(connection, jobs, tenant, _unfinished())
            case _:
                raise ValueError(f"{limit} is not about what is kept")

    def _bytes(self, connection: Connection, tenant: str) -> int:
        rows = (
            (datasets, datasets.c.size_bytes, None),
            (adapter_versions, adapter_versions.c.size_bytes, None),
            (jobs, jobs.c.reserved_bytes, _unfinished()),
        )
        total = 0
        for table, column, condition in rows:
            query = select(func.coalesce(func.sum(column), 0)).where(table.c.tenant == tenant)
            total += int(connection.scalar(query if condition is None else query.where(condition)) or 0)
        own = (self._data_directory / "uploads" / tenant, self._data_directory / "tenants" / tenant)
        return total + sum(directory_bytes(directory) for directory in own)


def new_version(connection: Connection, tenant: str, adapter: str) -> dict[Limit, int]:
    """What one more version of an adapter wants; the adapter itself too, if it is the first."""
    known = adapter in _adapters(connection, tenant)
    return {Limit.ADAPTERS: 0 if known else 1, Limit.ADAPTER_VERSIONS: 1}


def directory_bytes(directory: Path) -> int:
    """The size of all files below; what goes away while they are counted is not counted."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _count(
    connection: Connection, table: FromClause, tenant: str, condition: ColumnElement[bool] | None = None
) -> int:
    query = select(func.count()).select_from(table).where(table.c.tenant == tenant)
    return connection.scalar(query if condition is None else query.where(condition)) or 0


def _adapters(connection: Connection, tenant: str) -> set[str]:
    """Adapters that have versions, or will have one when a job ends."""
    kept = select(adapter_versions.c.adapter).where(adapter_versions.c.tenant == tenant)
    coming = select(jobs.c.adapter).where(jobs.c.tenant == tenant, _unfinished(), jobs.c.adapter != "")
    return set(connection.scalars(union(kept, coming)))


def _unfinished() -> ColumnElement[bool]:
    return jobs.c.state.not_in(FINAL_STATES)
