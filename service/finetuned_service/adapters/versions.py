"""Adapters and their versions as rows, read and numbered in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, exists, func, insert, select, update

from finetuned_service.adapters.aliases import DEFAULT_ALIAS, Alias, list_aliases
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.errors import NotFound
from finetuned_service.names import AdapterSelector
from finetuned_service.storage.schema import adapter_versions, adapters, aliases

HAS_VERSIONS = exists().where(
    adapter_versions.c.tenant == adapters.c.tenant, adapter_versions.c.adapter == adapters.c.id
)
"""What tells an adapter from the row that a deleted one leaves, which keeps its numbers from coming again."""

# Built once: every request looks a version up, and to build a statement takes longer than to run it.
_OF_ADAPTER = select(adapter_versions).where(
    adapter_versions.c.tenant == bindparam("tenant"), adapter_versions.c.adapter == bindparam("adapter")
)
_BY_NUMBER = _OF_ADAPTER.where(adapter_versions.c.version == bindparam("version"))
_BY_ALIAS = _OF_ADAPTER.join(
    aliases,
    and_(
        aliases.c.tenant == adapter_versions.c.tenant,
        aliases.c.adapter == adapter_versions.c.adapter,
        aliases.c.version == adapter_versions.c.version,
    ),
).where(aliases.c.alias == bindparam("alias"))


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version with the place of its weights."""

    tenant: str
    adapter: str
    version: int
    manifest: AdapterManifest
    directory: Path
    unnamed_since: float | None = None
    """Since when no alias points to it or can go back to it, in seconds since the epoch; None while one
    does."""

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter has at least one version and the alias `default`."""

    tenant: str
    adapter: str
    create_time: datetime
    latest_version: int
    version_count: int
    aliases: tuple[Alias, ...]
    base_digest: str
    """Of the base that the version which `default` points to was made for."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/adapters/{self.adapter}"


def load_adapter(connection: Connection, tenant: str, adapter: str) -> Adapter:
    """The adapter of that name.

    Raises:
        NotFound: if there is none.
    """
    row = connection.execute(
        select(
            adapters.c.create_time,
            func.count(adapter_versions.c.version).label("version_count"),
            func.max(adapter_versions.c.version).label("latest"),
        )
        .select_from(adapters.join(adapter_versions))
        .where(adapters.c.tenant == tenant, adapters.c.id == adapter)
        .group_by(adapters.c.create_time)
    ).one_or_none()
    if row is None:
        raise NotFound.resource(f"tenants/{tenant}/adapters/{adapter}")
    found = tuple(list_aliases(connection, tenant, adapter))
    default = next(alias.version for alias in found if alias.alias == DEFAULT_ALIAS)
    base_digest = connection.execute(
        select(adapter_versions.c.base_digest).where(
            adapter_versions.c.tenant == tenant,
            adapter_versions.c.adapter == adapter,
            adapter_versions.c.version == default,
        )
    ).scalar_one()
    created = datetime.fromtimestamp(row.create_time, UTC)
    return Adapter(tenant, adapter, created, row.latest, row.version_count, found, base_digest)


def weights_directory(directory: Path, digest: str) -> Path:
    """Where the weights of that digest lie."""
    return directory / digest.removeprefix("sha256:")


def parse_version(row: Row[Any], directory: Path) -> AdapterVersion:
    """The version of a row of `adapter_versions`, whose weights lie under their digest in `directory`."""
    manifest = AdapterManifest.model_validate_json(row.manifest)
    weights = weights_directory(directory, manifest.digest)
    return AdapterVersion(row.tenant, row.adapter, row.version, manifest, weights, row.unnamed_since)


def find_version(connection: Connection, selector: AdapterSelector, directory: Path) -> AdapterVersion | None:
    """The version that a selector means at this moment, or None."""
    named = {"tenant": selector.tenant, "adapter": selector.adapter}
    if selector.version is None:
        found = connection.execute(_BY_ALIAS, named | {"alias": selector.alias or DEFAULT_ALIAS})
    else:
        found = connection.execute(_BY_NUMBER, named | {"version": selector.version})
    row = found.one_or_none()
    return None if row is None else parse_version(row, directory)


def take_number(connection: Connection, tenant: str, adapter: str) -> int:
    """The adapter's next version number, taken for good; the adapter's row is made if it is not there."""
    own_row = and_(adapters.c.tenant == tenant, adapters.c.id == adapter)
    row = connection.execute(
        select(adapters.c.last_version, HAS_VERSIONS.label("alive")).where(own_row).with_for_update()
    ).one_or_none()
    now = time.time()
    if row is None:
        values = {"tenant": tenant, "id": adapter, "create_time": now, "last_version": 1}
        connection.execute(insert(adapters).values(values))
        return 1
    number = int(row.last_version) + 1
    changes: dict[str, object] = {"last_version": number}
    if not row.alive:
        changes["create_time"] = now
    connection.execute(update(adapters).where(own_row).values(changes))
    return number


def names_of(connection: Connection, digests: Sequence[str]) -> dict[str, str]:
    """A name for each digest that versions have; of several versions with it, the first by name."""
    columns = adapter_versions.c
    query = (
        select(columns.digest, columns.tenant, columns.adapter, columns.version)
        .where(columns.digest.in_(digests))
        .order_by(columns.tenant.desc(), columns.adapter.desc(), columns.version.desc())
    )
    return {
        row.digest: f"tenants/{row.tenant}/adapters/{row.adapter}/versions/{row.version}"
        for row in connection.execute(query)
    }
