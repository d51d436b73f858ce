"""Adapters, their versions and the aliases that point to them.

A version never changes and its number is never used again. `default` is set on the first version
and moves only when told to, so that no version goes live by being trained. Weights lie under their
digest, once, however many versions name them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select, update

from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.errors import EtagMismatch, InvalidField, NotFound, ResourceInUse
from finetuned_service.names import AdapterSelector, check_id
from finetuned_service.storage import idempotency
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import publish_directory
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of
from finetuned_service.storage.schema import adapter_versions, adapters, aliases

DEFAULT_ALIAS = "default"
PREVIOUS = "previous"
"""In SetAlias: the version that the alias pointed to before."""


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version with the place of its weights."""

    tenant: str
    adapter: str
    version: int
    manifest: AdapterManifest
    directory: Path

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True, slots=True)
class Alias:
    tenant: str
    adapter: str
    alias: str
    version: int
    previous_version: int | None
    etag: str
    update_time: datetime

    @property
    def adapter_name(self) -> str:
        return f"tenants/{self.tenant}/adapters/{self.adapter}"


@dataclass(frozen=True, slots=True)
class Adapter:
    tenant: str
    adapter: str
    create_time: datetime
    latest_version: int
    version_count: int
    aliases: tuple[Alias, ...]

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/adapters/{self.adapter}"


class AdapterRegistry:
    """The registry over the database and `directory`, where weights lie under their digest."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory

    def directory_of(self, digest: str) -> Path:
        return self._directory / digest.removeprefix("sha256:")

    def add_version(
        self,
        connection: Connection,
        tenant: str,
        adapter: str,
        staged: Path,
        manifest_for: Callable[[str], AdapterManifest],
    ) -> AdapterVersion:
        """Record the next version, in the caller's transaction; the first one becomes `default`.

        The files move inside the transaction too, so that no deletion of another version with the same
        digest can come in between. Should it roll back, they lie there unnamed and harm nobody.

        Args:
            connection: a writing transaction.
            tenant: the owner.
            adapter: the adapter's id; created if it does not exist.
            staged: directory with the checked files, on the same file system.
            manifest_for: makes the manifest from the version's name.
        """
        last = connection.scalar(
            select(adapters.c.last_version)
            .where(adapters.c.tenant == tenant, adapters.c.id == adapter)
            .with_for_update()
        )
        now = time.time()
        number = 1 if last is None else int(last) + 1
        if last is None:
            connection.execute(
                insert(adapters).values(tenant=tenant, id=adapter, create_time=now, last_version=1)
            )
        else:
            connection.execute(
                update(adapters)
                .where(adapters.c.tenant == tenant, adapters.c.id == adapter)
                .values(last_version=number)
            )
        manifest = manifest_for(f"tenants/{tenant}/adapters/{adapter}/versions/{number}")
        publish_directory(staged, self.directory_of(manifest.digest))
        connection.execute(
            insert(adapter_versions).values(
                tenant=tenant,
                adapter=adapter,
                version=number,
                digest=manifest.digest,
                method=manifest.method,
                base_digest=manifest.base_digest,
                manifest=manifest.model_dump_json(),
            )
        )
        if self._alias(connection, tenant, adapter, DEFAULT_ALIAS) is None:
            self._write_alias(connection, None, tenant, adapter, DEFAULT_ALIAS, number)
        return AdapterVersion(tenant, adapter, number, manifest, self.directory_of(manifest.digest))

    def import_version(
        self,
        tenant: str,
        adapter: str,
        staged: Path,
        manifest_for: Callable[[str], AdapterManifest],
        request: RequestKey,
    ) -> AdapterVersion:
        """`add_version` in a transaction of its own, once for each request id."""
        with self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            if made is not None:
                return self._resolve(connection, AdapterSelector.parse(made))
            version = self.add_version(connection, tenant, adapter, staged, manifest_for)
            idempotency.remember(connection, request, version.name, time.time())
            return version

    def resolve(self, selector: AdapterSelector) -> AdapterVersion:
        """The version that a name, an alias or an adapter means at this moment.

        Raises:
            NotFound: if there is no such adapter, version or alias.
        """
        with self._database.read() as connection:
            return self._resolve(connection, selector)

    def get(self, selector: AdapterSelector) -> Adapter:
        with self._database.read() as connection:
            return self._adapter(connection, selector.tenant, selector.adapter)

    def list(self, tenant: str, page: PageRequest) -> Page[Adapter]:
        """In order of name."""
        query = (
            select(adapters.c.id)
            .where(adapters.c.tenant == tenant, adapters.c.id > page.after)
            .order_by(adapters.c.id)
            .limit(page.size + 1)
        )
        with self._database.read() as connection:
            found = [self._adapter(connection, tenant, row.id) for row in connection.execute(query).all()]
        return page_of([(item.adapter, item) for item in found], page.size)

    def versions(
        self, selector: AdapterSelector, page: PageRequest, *, method: str = "", base_digest: str = ""
    ) -> Page[AdapterVersion]:
        """Newest first; `method` and `base_digest` keep only matching ones."""
        tenant, adapter = selector.tenant, selector.adapter
        query = (
            select(adapter_versions.c.version, adapter_versions.c.manifest)
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
            self._adapter(connection, tenant, adapter)
            rows = connection.execute(query).all()
        found = [self._version(tenant, adapter, row.version, row.manifest) for row in rows]
        return page_of([(str(item.version), item) for item in found], page.size)

    def aliases(self, selector: AdapterSelector, page: PageRequest) -> Page[Alias]:
        """In order of name."""
        with self._database.read() as connection:
            adapter = self._adapter(connection, selector.tenant, selector.adapter)
        found = [alias for alias in adapter.aliases if alias.alias > page.after][: page.size + 1]
        return page_of([(alias.alias, alias) for alias in found], page.size)

    def alias(self, selector: AdapterSelector) -> Alias:
        with self._database.read() as connection:
            return self._existing_alias(connection, selector)

    def set_alias(self, selector: AdapterSelector, version: str, etag: str) -> Alias:
        """Point an alias at a version of its adapter (`PREVIOUS` rolls back one step), atomically.

        Raises:
            EtagMismatch: `etag` is given and the alias has moved since it was read.
            InvalidField: `version` is not a version of this adapter.
        """
        name = _alias_name(selector)
        with self._database.begin() as connection:
            self._adapter(connection, selector.tenant, selector.adapter)
            current = self._alias(connection, selector.tenant, selector.adapter, name)
            _check_etag(current, etag)
            target = self._target(connection, selector, current, version)
            return self._write_alias(connection, current, selector.tenant, selector.adapter, name, target)

    def promote(self, connection: Connection, tenant: str, adapter: str, alias: str, version: int) -> Alias:
        """Point an alias at a version in the caller's transaction."""
        current = self._alias(connection, tenant, adapter, alias)
        return self._write_alias(connection, current, tenant, adapter, check_id(alias, "alias"), version)

    def delete_alias(self, selector: AdapterSelector, etag: str) -> None:
        with self._database.begin() as connection:
            current = self._existing_alias(connection, selector)
            _check_etag(current, etag)
            if current.alias == DEFAULT_ALIAS:
                raise ResourceInUse(
                    f"the alias {DEFAULT_ALIAS!r} stays as long as its adapter; point it elsewhere with SetAlias",
                    metadata={"used_by": selector.adapter_name},
                )
            connection.execute(
                delete(aliases).where(
                    aliases.c.tenant == selector.tenant,
                    aliases.c.adapter == selector.adapter,
                    aliases.c.alias == current.alias,
                )
            )

    def delete_version(self, selector: AdapterSelector) -> AdapterVersion:
        """Delete a version that no alias names.

        Raises:
            ResourceInUse: an alias points to it.
        """
        with self._database.begin() as connection:
            version = self._resolve(connection, selector)
            naming = [
                alias.alias
                for alias in self._aliases(connection, version.tenant, version.adapter)
                if alias.version == version.version
            ]
            if naming:
                raise ResourceInUse(
                    f"{version.name} is named by the alias {', '.join(naming)}; move or delete the alias first",
                    metadata={"used_by": f"{selector.adapter_name}/aliases/{naming[0]}"},
                )
            connection.execute(
                delete(adapter_versions).where(
                    adapter_versions.c.tenant == version.tenant,
                    adapter_versions.c.adapter == version.adapter,
                    adapter_versions.c.version == version.version,
                )
            )
        self._drop_unnamed({version.manifest.digest})
        return version

    def delete_adapter(self, selector: AdapterSelector) -> tuple[str, ...]:
        """Delete an adapter with all versions and aliases; returns the digests that it named."""
        key = (selector.tenant, selector.adapter)
        with self._database.begin() as connection:
            self._adapter(connection, *key)
            digests = connection.scalars(
                select(adapter_versions.c.digest).where(
                    adapter_versions.c.tenant == key[0], adapter_versions.c.adapter == key[1]
                )
            ).all()
            for table, owner in (
                (aliases, aliases.c.adapter),
                (adapter_versions, adapter_versions.c.adapter),
            ):
                connection.execute(delete(table).where(table.c.tenant == key[0], owner == key[1]))
            connection.execute(delete(adapters).where(adapters.c.tenant == key[0], adapters.c.id == key[1]))
        self._drop_unnamed(set(digests))
        return tuple(set(digests))

    def current(self, tenant: str, adapter: str, alias: str) -> AdapterVersion | None:
        """The version that an alias points to, or None if there is no such adapter or alias."""
        try:
            return self.resolve(AdapterSelector(tenant, adapter, alias=alias))
        except NotFound:
            return None

    def _drop_unnamed(self, digests: set[str]) -> None:
        """Remove files that no version names any more. The engine keeps what it has mapped."""
        for digest in digests:
            with self._database.begin() as connection:
                # Inside the writing transaction, so that no publication can come in between.
                used = connection.scalar(
                    select(func.count())
                    .select_from(adapter_versions)
                    .where(adapter_versions.c.digest == digest)
                )
                if not used:
                    shutil.rmtree(self.directory_of(digest), ignore_errors=True)

    def _resolve(self, connection: Connection, selector: AdapterSelector) -> AdapterVersion:
        number = selector.version
        if number is None:
            number = self._existing_alias(connection, selector).version
        manifest = connection.scalar(
            select(adapter_versions.c.manifest).where(
                adapter_versions.c.tenant == selector.tenant,
                adapter_versions.c.adapter == selector.adapter,
                adapter_versions.c.version == number,
            )
        )
        if manifest is None:
            raise NotFound.resource(str(selector))
        return self._version(selector.tenant, selector.adapter, number, manifest)

    def _version(self, tenant: str, adapter: str, number: int, manifest: str) -> AdapterVersion:
        parsed = AdapterManifest.model_validate_json(manifest)
        return AdapterVersion(tenant, adapter, number, parsed, self.directory_of(parsed.digest))

    def _adapter(self, connection: Connection, tenant: str, adapter: str) -> Adapter:
        row = connection.execute(
            select(
                adapters.c.create_time,
                func.count(adapter_versions.c.version).label("version_count"),
                func.max(adapter_versions.c.version).label("latest"),
            )
            .select_from(adapters.outerjoin(adapter_versions))
            .where(adapters.c.tenant == tenant, adapters.c.id == adapter)
            .group_by(adapters.c.create_time)
        ).one_or_none()
        if row is None:
            raise NotFound.resource(f"tenants/{tenant}/adapters/{adapter}")
        found = tuple(self._aliases(connection, tenant, adapter))
        created = datetime.fromtimestamp(row.create_time, UTC)
        return Adapter(tenant, adapter, created, row.latest or 0, row.version_count, found)

    def _aliases(self, connection: Connection, tenant: str, adapter: str) -> list[Alias]:
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
                str(row.etag),
                datetime.fromtimestamp(row.update_time, UTC),
            )
            for row in rows
        ]

    def _alias(self, connection: Connection, tenant: str, adapter: str, alias: str) -> Alias | None:
        return next((a for a in self._aliases(connection, tenant, adapter) if a.alias == alias), None)

    def _existing_alias(self, connection: Connection, selector: AdapterSelector) -> Alias:
        self._adapter(connection, selector.tenant, selector.adapter)
        found = self._alias(connection, selector.tenant, selector.adapter, _alias_name(selector))
        if found is None:
            raise NotFound.resource(f"{selector.adapter_name}/aliases/{_alias_name(selector)}")
        return found

    def _target(
        self, connection: Connection, selector: AdapterSelector, current: Alias | None, version: str
    ) -> int:
        if version == PREVIOUS:
            if current is None or current.previous_version is None:
                raise NotFound(
                    f"the alias {_alias_name(selector)!r} has no previous version to go back to; name a version",
                    metadata={"resource": f"{selector.adapter_name}/aliases/{_alias_name(selector)}"},
                )
            version = f"{selector.adapter_name}/versions/{current.previous_version}"
        wanted = AdapterSelector.parse(version, "version")
        if wanted.version is None or wanted.adapter_name != selector.adapter_name:
            raise InvalidField.one(
                "version",
                f"is {version!r}; allowed: '{selector.adapter_name}/versions/{{number}}' or {PREVIOUS!r}",
            )
        return self._resolve(connection, wanted).version

    def _write_alias(
        self,
        connection: Connection,
        current: Alias | None,
        tenant: str,
        adapter: str,
        alias: str,
        version: int,
    ) -> Alias:
        now = time.time()
        updated = datetime.fromtimestamp(now, UTC)
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
            return Alias(tenant, adapter, alias, version, None, "1", updated)
        etag = int(current.etag) + 1
        connection.execute(
            update(aliases)
            .where(aliases.c.tenant == tenant, aliases.c.adapter == adapter, aliases.c.alias == alias)
            .values(version=version, previous_version=current.version, etag=etag, update_time=now)
        )
        return Alias(tenant, adapter, alias, version, current.version, str(etag), updated)


def _alias_name(selector: AdapterSelector) -> str:
    return selector.alias or DEFAULT_ALIAS


def _check_etag(current: Alias | None, etag: str) -> None:
    if etag and (current is None or current.etag != etag):
        found = current.etag if current else "none: it does not exist"
        raise EtagMismatch(
            f"the alias has moved since etag {etag!r} was read (now {found}); read it again and decide anew",
            metadata={"current_etag": current.etag if current else ""},
        )
