"""Aliases: names that point to one version of an adapter each and move atomically.

All functions work in the caller's transaction, so that an alias moves together with what it moves to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, or_, select, update

from finetuned_service.errors import EtagMismatch
from finetuned_service.storage.schema import adapter_versions, aliases

NAMED = exists().where(
    aliases.c.tenant == adapter_versions.c.tenant,
    aliases.c.adapter == adapter_versions.c.adapter,
    or_(
        aliases.c.version == adapter_versions.c.version,
        aliases.c.previous_version == adapter_versions.c.version,
    ),
)
"""Of a row of versions: whether an alias points to it, or can go back to it."""

DEFAULT_ALIAS = "default"
PREVIOUS = "previous"
"""In SetAlias: the version that the alias pointed to before."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Where an alias points."""

    tenant: str
    adapter: str
    alias: str
    version: int
    previous_version: int | None
    """Where it pointed before; None if nowhere, or if that version has been deleted."""
    etag: str
    """Changes with every move, and is never the same again, also not after a deletion."""
    update_time: datetime

    @property
    def adapter_name(self) -> str:
        return f"tenants/{self.tenant}/adapters/{self.adapter}"

    @property
    def name(self) -> str:
        return f"{self.adapter_name}/aliases/{self.alias}"


def list_aliases(connection: Connection, tenant: str, adapter: str) -> list[Alias]:
    """In order of name."""
    rows = connection.execute(
        select(aliases)
        .where(aliases.c.tenant == tenant, aliases.c.adapter == adapter)
        .order_by(aliases.c.alias)
    )
    return [
        Alias(
            tenant,
            adapter,
            row.alias,
            row.version,
            row.previous_version,
            _etag(row.etag, row.update_time),
            datetime.fromtimestamp(row.update_time, UTC),
        )
        for row in rows
    ]


def find_alias(connection: Connection, tenant: str, adapter: str, alias: str) -> Alias | None:
    return next((found for found in list_aliases(connection, tenant, adapter) if found.alias == alias), None)


def point_alias(connection: Connection, tenant: str, adapter: str, alias: str, version: int) -> Alias:
    """Create the alias or move it. One that points there already stays as it is, so that a repeated call
    does not lose the version to go back to.
    """
    now = time.time()
    updated = datetime.fromtimestamp(now, UTC)
    current = find_alias(connection, tenant, adapter, alias)
    if current is None:
        connection.execute(
            insert(aliases).values(
                tenant=tenant,
                adapter=adapter,
                alias=alias,
                version=version,
                previous_version=None,
                etag=1,
                update_time=now,
            )
        )
        _note_named(connection, tenant, adapter, now)
        return Alias(tenant, adapter, alias, version, None, _etag(1, now), updated)
    if current.version == version:
        return current
    moves = int(current.etag.partition("-")[0]) + 1
    connection.execute(
        update(aliases)
        .where(_is(tenant, adapter, alias))
        .values(version=version, previous_version=current.version, etag=moves, update_time=now)
    )
    _note_named(connection, tenant, adapter, now)
    return Alias(tenant, adapter, alias, version, current.version, _etag(moves, now), updated)


def remove_alias(connection: Connection, alias: Alias) -> None:
    connection.execute(delete(aliases).where(_is(alias.tenant, alias.adapter, alias.alias)))
    _note_named(connection, alias.tenant, alias.adapter, time.time())


def forget_version(connection: Connection, tenant: str, adapter: str, version: int) -> None:
    """No alias can go back to a version that is being deleted."""
    connection.execute(
        update(aliases)
        .where(
            aliases.c.tenant == tenant, aliases.c.adapter == adapter, aliases.c.previous_version == version
        )
        .values(previous_version=None)
    )


def check_etag(current: Alias | None, etag: str) -> None:
    """Compare an etag as the caller read it; an empty one always fits.

    Raises:
        EtagMismatch: the alias has moved, or is gone.
    """
    if etag and (current is None or current.etag != etag):
        found = f"now {current.etag}" if current else "now it does not exist"
        raise EtagMismatch(
            f"the alias has moved since etag {etag!r} was read ({found}); read it again and decide anew",
            metadata={"current_etag": current.etag if current else ""},
        )


def _note_named(connection: Connection, tenant: str, adapter: str, now: float) -> None:
    """After every move: since when each version of the adapter has been without an alias."""
    own = and_(adapter_versions.c.tenant == tenant, adapter_versions.c.adapter == adapter)
    since = adapter_versions.c.unnamed_since
    connection.execute(update(adapter_versions).where(own, NAMED).values(unnamed_since=None))
    connection.execute(update(adapter_versions).where(own, ~NAMED, since.is_(None)).values(unnamed_since=now))


def _is(tenant: str, adapter: str, alias: str) -> ColumnElement[bool]:
    return and_(aliases.c.tenant == tenant, aliases.c.adapter == adapter, aliases.c.alias == alias)


def _etag(moves: int, update_time: float) -> str:
    # The time tells an alias from one of the same name that was deleted before.
    return f"{moves}-{round(update_time * 1e6):x}"
