"""Adapters and their versions; aliases move here too (`adapters/aliases.py` has their rows).

A version never changes and its number is never used again, also not after the adapter was deleted.
`default` is set on the first version and moves only when told to, so that no version goes live by
being trained. Weights lie under their digest, once, however many versions name them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, and_, delete, insert, or_, select, true

from finetuned_service.adapters.aliases import (
    DEFAULT_ALIAS,
    PREVIOUS,
    Alias,
    check_etag,
    find_alias,
    forget_version,
    list_aliases,
    point_alias,
    remove_alias,
)
from finetuned_service.adapters.files import stored_digest
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.readers import Readers
from finetuned_service.adapters.versions import (
    HAS_VERSIONS,
    Adapter,
    AdapterVersion,
    find_version,
    load_adapter,
    parse_version,
    take_number,
    weights_directory,
)
from finetuned_service.errors import InvalidAdapterFiles, InvalidField, NotFound, ResourceInUse
from finetuned_service.names import AdapterSelector, check_id
from finetuned_service.storage import idempotency
from finetuned_service.storage.continued import refuse_continued
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import publish_directory, remove_directory, sweep_leftovers
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of
from finetuned_service.storage.retention import DEFAULT_RETENTION, Retention, expires
from finetuned_service.storage.schema import adapter_versions, adapters, aliases
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.stored import StoredLimits, new_version


class AdapterRegistry:
    """The registry over the database and `directory`, where weights lie under their digest; `limits` is
    what a tenant may keep.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        limits: StoredLimits,
        retention: Retention = DEFAULT_RETENTION,
    ) -> None:
        self._database = database
        self._limits = limits
        self._retention = retention
        self._directory = directory
        self.readers = Readers()
        sweep_leftovers(directory, ".*")

    def directory_of(self, digest: str) -> Path:
        return weights_directory(self._directory, digest)

    def expire_time(self, version: AdapterVersion) -> datetime | None:
        """When the version expires unless an alias names it; None for never."""
        return expires(version.unnamed_since, self._retention.versions_seconds)

    def add_version(
        self,
        connection: Connection,
        tenant: str,
        adapter: str,
        staged: Path,
        manifest_for: Callable[[str], AdapterManifest],
        *,
        damaged: bool = False,
    ) -> AdapterVersion:
        """Record the next version, in the caller's transaction; the first one becomes `default`.

        The files move inside the transaction too, so that no deletion of another version with the same
        digest can come in between. Should it roll back, they lie there unnamed and harm nobody; it may be
        repeated then. Whether there is room was decided before: when the job was accepted, or by
        `import_version`.

        Args:
            connection: a writing transaction.
            tenant: the owner.
            adapter: the adapter's id; created if it does not exist.
            staged: directory with the checked files, on the same file system.
            manifest_for: makes the manifest from the version's name.
            damaged: see `is_damaged`; files that lie there are replaced.
        """
        number = take_number(connection, tenant, adapter)
        manifest = manifest_for(f"tenants/{tenant}/adapters/{adapter}/versions/{number}")
        publish_directory(staged, self.directory_of(manifest.digest), damaged=damaged)
        connection.execute(
            insert(adapter_versions).values(
                tenant=tenant,
                adapter=adapter,
                version=number,
                digest=manifest.digest,
                method=manifest.method,
                base_digest=manifest.base_digest,
                size_bytes=manifest.size_bytes,
                manifest=manifest.model_dump_json(),
                job=manifest.lineage.job.rsplit("/", 1)[-1] or None,
                unnamed_since=time.time(),
            )
        )
        if find_alias(connection, tenant, adapter, DEFAULT_ALIAS) is None:
            point_alias(connection, tenant, adapter, DEFAULT_ALIAS, number)
        return self._resolve(connection, AdapterSelector(tenant, adapter, number))

    def is_damaged(self, digest: str) -> bool:
        """Whether files lie under a digest that have not that content; reads all of them, so ask before a transaction."""
        directory = self.directory_of(digest)
        if not directory.exists():
            return False
        try:
            return stored_digest(directory) != digest
        except (InvalidAdapterFiles, OSError):
            return True

    def import_version(
        self,
        tenant: str,
        adapter: str,
        staged: Path,
        manifest_for: Callable[[str], AdapterManifest],
        size_bytes: int,
        request: RequestKey,
        *,
        damaged: bool = False,
    ) -> AdapterVersion:
        """`add_version` in a transaction of its own, once for each request id.

        Raises:
            QuotaExceeded: the tenant may have no further adapter or version, or no more bytes.
        """
        with self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            if made is not None:
                found = find_version(connection, AdapterSelector.parse(made), self._directory)
                if found is None:
                    raise idempotency.deleted_since(made)
                return found
            self._admit(connection, tenant, adapter, size_bytes)
            version = self.add_version(connection, tenant, adapter, staged, manifest_for, damaged=damaged)
            idempotency.remember(connection, request, version.name, time.time())
            return version

    def refuse_full(self, tenant: str, adapter: str, request: RequestKey) -> None:
        """Say before the files come what `import_version` would say after them. A request that made a version before makes
        no further one.

        Raises:
            QuotaExceeded: the tenant may have no further adapter or version, or its storage is full.
        """
        with self._database.read() as connection:
            if not idempotency.came_before(connection, request, time.time()):
                self._admit(connection, tenant, adapter, 1)

    def _admit(self, connection: Connection, tenant: str, adapter: str, size_bytes: int) -> None:
        wanted = new_version(connection, tenant, adapter) | {Limit.STORAGE_BYTES: size_bytes}
        self._limits.admit(connection, tenant, wanted)

    def resolve(self, selector: AdapterSelector) -> AdapterVersion:
        """The version that a name, an alias or an adapter means at this moment.

        Raises:
            NotFound: if there is no such adapter, version or alias.
        """
        with self._database.read() as connection:
            return self._resolve(connection, selector)

    def get(self, selector: AdapterSelector) -> Adapter:
        with self._database.read() as connection:
            return load_adapter(connection, selector.tenant, selector.adapter)

    def list(self, tenant: str, page: PageRequest) -> Page[Adapter]:
        """In order of name."""
        query = (
            select(adapters.c.id)
            .where(adapters.c.tenant == tenant, adapters.c.id > page.after, HAS_VERSIONS)
            .order_by(adapters.c.id)
            .limit(page.size + 1)
        )
        with self._database.read() as connection:
            found = [load_adapter(connection, tenant, row.id) for row in connection.execute(query).all()]
        return page_of([(item.adapter, item) for item in found], page)

    def versions(
        self, selector: AdapterSelector, page: PageRequest, *, method: str = "", base_digest: str = ""
    ) -> Page[AdapterVersion]:
        """Newest first; `method` and `base_digest` keep only matching ones."""
        tenant, adapter = selector.tenant, selector.adapter
        query = (
            select(adapter_versions)
            .where(
                adapter_versions.c.tenant == tenant,
                adapter_versions.c.adapter == adapter,
                adapter_versions.c.version < page.after_number(default=2**31 - 1),
            )
            .order_by(adapter_versions.c.version.desc())
            .limit(page.size + 1)
        )
        if method:
            query = query.where(adapter_versions.c.method == method)
        if base_digest:
            query = query.where(adapter_versions.c.base_digest == base_digest)
        with self._database.read() as connection:
            load_adapter(connection, tenant, adapter)
            rows = connection.execute(query).all()
        found = [parse_version(row, self._directory) for row in rows]
        return page_of([(str(item.version), item) for item in found], page)

    def versions_of(self, tenant: str, digests: Collection[str], page: PageRequest) -> Page[AdapterVersion]:
        """The versions of a tenant that have one of the digests, in order of adapter and number."""
        columns = adapter_versions.c
        after, _, number = page.after.partition("/")
        later = and_(
            columns.adapter == after, columns.version > int(number) if number.isdecimal() else true()
        )
        query = (
            select(adapter_versions)
            .where(columns.tenant == tenant, columns.digest.in_(digests), or_(columns.adapter > after, later))
            .order_by(columns.adapter, columns.version)
            .limit(page.size + 1)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        found = [parse_version(row, self._directory) for row in rows]
        return page_of([(f"{item.adapter}/{item.version}", item) for item in found], page)

    def unnamed_by(self, tenant: str, digests: Collection[str]) -> set[str]:
        """Those of the digests that no version of the tenant has."""
        columns = adapter_versions.c
        named = select(columns.digest).where(columns.tenant == tenant, columns.digest.in_(digests))
        with self._database.read() as connection:
            return set(digests).difference(connection.scalars(named))

    def aliases(self, selector: AdapterSelector, page: PageRequest) -> Page[Alias]:
        """In order of name."""
        with self._database.read() as connection:
            adapter = load_adapter(connection, selector.tenant, selector.adapter)
        found = [alias for alias in adapter.aliases if alias.alias > page.after][: page.size + 1]
        return page_of([(alias.alias, alias) for alias in found], page)

    def alias(self, selector: AdapterSelector) -> Alias:
        with self._database.read() as connection:
            return self._alias(connection, selector)

    def set_alias(self, selector: AdapterSelector, version: str, etag: str) -> Alias:
        """Point an alias at a version of its adapter (`PREVIOUS` rolls back one step), atomically.

        Raises:
            EtagMismatch: `etag` is given and the alias has moved since it was read.
            InvalidField: `version` is not a version of this adapter.
        """
        tenant, adapter, name = selector.tenant, selector.adapter, selector.alias or DEFAULT_ALIAS
        with self._database.begin() as connection:
            load_adapter(connection, tenant, adapter)
            current = find_alias(connection, tenant, adapter, name)
            check_etag(current, etag)
            if version == PREVIOUS:
                target = _previous(selector, current)
            else:
                target = self._version_of(connection, selector, version)
            return point_alias(connection, tenant, adapter, name, target)

    def promote(self, connection: Connection, tenant: str, adapter: str, alias: str, version: int) -> Alias:
        """Point an alias at a version in the caller's transaction."""
        return point_alias(connection, tenant, adapter, check_id(alias, "alias"), version)

    def delete_alias(self, selector: AdapterSelector, etag: str) -> None:
        with self._database.begin() as connection:
            current = self._alias(connection, selector)
            check_etag(current, etag)
            if current.alias == DEFAULT_ALIAS:
                raise ResourceInUse(
                    f"the alias {DEFAULT_ALIAS!r} stays as long as its adapter; point it elsewhere with SetAlias",
                    metadata={"used_by": selector.adapter_name},
                )
            remove_alias(connection, current)

    def delete_version(self, selector: AdapterSelector) -> AdapterVersion:
        """Delete a version that no alias names.

        Raises:
            ResourceInUse: an alias points to it, or an unfinished job goes on from it.
        """
        with self._database.begin() as connection:
            version = self._resolve(connection, selector)
            tenant, adapter, number = version.tenant, version.adapter, version.version
            naming = [a for a in list_aliases(connection, tenant, adapter) if a.version == number]
            if naming:
                raise ResourceInUse(
                    f"{version.name} is named by the alias {', '.join(a.alias for a in naming)}; move or "
                    "delete the alias first",
                    metadata={"used_by": naming[0].name},
                )
            refuse_continued(connection, version.name)
            forget_version(connection, tenant, adapter, number)
            connection.execute(
                delete(adapter_versions).where(
                    adapter_versions.c.tenant == tenant,
                    adapter_versions.c.adapter == adapter,
                    adapter_versions.c.version == number,
                )
            )
        self.drop_unnamed({version.manifest.digest})
        return version

    def delete_adapter(self, selector: AdapterSelector) -> tuple[str, ...]:
        """Delete an adapter with all versions and aliases; returns the digests that it named.

        Raises:
            ResourceInUse: an unfinished job goes on from one of its versions.
        """
        tenant, adapter = selector.tenant, selector.adapter
        own_versions = and_(adapter_versions.c.tenant == tenant, adapter_versions.c.adapter == adapter)
        with self._database.begin() as connection:
            load_adapter(connection, tenant, adapter)
            refuse_continued(connection, selector.adapter_name, whole_adapter=True)
            digests = set(connection.scalars(select(adapter_versions.c.digest).where(own_versions)))
            connection.execute(
                delete(aliases).where(aliases.c.tenant == tenant, aliases.c.adapter == adapter)
            )
            connection.execute(delete(adapter_versions).where(own_versions))
        self.drop_unnamed(digests)
        return tuple(sorted(digests))

    def current(self, tenant: str, adapter: str, alias: str) -> AdapterVersion | None:
        """The version that an alias points to, or None if there is no such adapter or alias."""
        with self._database.read() as connection:
            return self.current_in(connection, tenant, adapter, alias)

    def current_in(
        self, connection: Connection, tenant: str, adapter: str, alias: str
    ) -> AdapterVersion | None:
        """`current` as the caller's transaction sees it."""
        return find_version(connection, AdapterSelector(tenant, adapter, alias=alias), self._directory)

    def drop_unnamed(self, digests: Collection[str]) -> None:
        """Remove files that no version names any more; those that calls in flight may read wait for `readers`."""
        for digest in digests:
            with self._database.begin() as connection:
                # Inside a writing transaction, so that no publication can come in between.
                naming = select(adapter_versions.c.version).where(adapter_versions.c.digest == digest)
                named = connection.execute(naming.limit(1)).first() is not None
                if not named and not self.readers.keep(digest):
                    remove_directory(self.directory_of(digest))

    def _resolve(self, connection: Connection, selector: AdapterSelector) -> AdapterVersion:
        found = find_version(connection, selector, self._directory)
        if found is None:
            # Says which part of the name is at fault.
            load_adapter(connection, selector.tenant, selector.adapter)
            raise NotFound.resource(str(selector))
        return found

    def _version_of(self, connection: Connection, selector: AdapterSelector, version: str) -> int:
        wanted = AdapterSelector.parse(version, "version")
        if wanted.version is None or wanted.adapter_name != selector.adapter_name:
            raise InvalidField.one(
                "version",
                f"is {version!r}; allowed: '{selector.adapter_name}/versions/{{number}}' or {PREVIOUS!r}",
            )
        return self._resolve(connection, wanted).version

    def _alias(self, connection: Connection, selector: AdapterSelector) -> Alias:
        load_adapter(connection, selector.tenant, selector.adapter)
        name = selector.alias or DEFAULT_ALIAS
        found = find_alias(connection, selector.tenant, selector.adapter, name)
        if found is None:
            raise NotFound.resource(f"{selector.adapter_name}/aliases/{name}")
        return found


def _previous(selector: AdapterSelector, current: Alias | None) -> int:
    if current is None or current.previous_version is None:
        name = selector.alias or DEFAULT_ALIAS
        raise NotFound(
            f"the alias {name!r} has no previous version to go back to; name a version",
            metadata={"resource": f"{selector.adapter_name}/aliases/{name}"},
        )
    return current.previous_version
