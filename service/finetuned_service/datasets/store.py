"""Datasets: rows in the database that name canonical rows by their digest.

Refused content leaves nothing behind. Files lie under their digest, once, however many datasets of
whatever tenants name them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from finetuned_service.datasets.formats.choose import DataFormat, check_mapping, format_of_name
from finetuned_service.datasets.import_roots import ImportRoots
from finetuned_service.datasets.import_urls import ImportUrls
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.uploads import Uploads
from finetuned_service.datasets.validation import DataLimits, DatasetFacts, validate
from finetuned_service.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidUpload,
    NotFound,
    ResourceInUse,
)
from finetuned_service.names import ResourceName, check_id
from finetuned_service.storage import idempotency
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import publish_file, refusing_full_disk, sweep_leftovers
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of
from finetuned_service.storage.retention import DEFAULT_RETENTION, Retention
from finetuned_service.storage.schema import datasets
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.stored import StoredLimits
from finetuned_service.vocabulary import DatasetReport

_VALIDATING = ".validating-"
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Content:
    """A file that is to become a dataset, and how to read it."""

    path: Path
    file_format: DataFormat
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One stored dataset; it never changes."""

    tenant: str
    id: str
    digest: str
    row_kind: RowKind
    rows: int
    size_bytes: int
    create_time: datetime
    source: str
    path: Path
    """Canonical rows, one JSON object a line."""
    report: DatasetReport | None = None
    """None for datasets that older builds stored."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/datasets/{self.id}"


class DatasetStore:
    """Datasets over the database and `directory`.

    Args:
        database: where names live.
        directory: holds `datasets/` (by digest) and `uploads/`.
        limits: what a file may hold.
        import_roots: directories under which `import_file` may read.
        used_by: the name of an unfinished job that uses (tenant, dataset), or "", as a transaction sees it.
        tenant_limits: what a tenant may keep.
        retention: how long an upload waits for its end.
        import_urls: prefixes of object stores under which `import_file` may read too.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        limits: DataLimits,
        import_roots: tuple[Path, ...],
        used_by: Callable[[Connection, str, str], str],
        tenant_limits: StoredLimits,
        retention: Retention = DEFAULT_RETENTION,
        import_urls: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._rows_directory = directory / "datasets"
        self._limits = limits
        self._import_roots = ImportRoots(import_roots)
        self._import_urls = ImportUrls(import_urls)
        self._used_by = used_by
        self._tenant_limits = tenant_limits
        self.uploads = Uploads(
            database, directory / "uploads", limits.max_bytes, tenant_limits, retention.uploads_seconds
        )
        """Those in progress; `finish` makes datasets of them."""
        for needed in (self._rows_directory, directory / "uploads"):
            needed.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(self._rows_directory, f"{_VALIDATING}*")

    def answered(self, request: RequestKey) -> bool:
        """Whether `finish` has its answer without an upload: the request's id came before, and made a dataset."""
        with self._database.read() as connection:
            return idempotency.came_before(connection, request, time.time())

    def finish(
        self,
        tenant: str,
        upload_id: str,
        size_bytes: int,
        sha256: bytes,
        request: RequestKey,
        file_format: DataFormat = DataFormat.JSONL,
        columns: Mapping[str, str] = NO_COLUMNS,
    ) -> Dataset:
        """Validate the upload and store it as its dataset; the upload is gone afterwards.

        Raises:
            InvalidField: the mapping of columns cannot be followed; the upload stays.
            InvalidUpload: the bytes are not the ones announced: too few or many of them, and the upload
                can go on; others, and it is dropped.
            InvalidData: rows are refused; the upload is dropped and nothing is stored.
            AlreadyExists: the dataset exists with other content; the upload is dropped.
            QuotaExceeded: the canonical rows are larger than the upload, and too large; the upload stays.
        """
        made = self._made_before(request)
        if made is not None:
            self._drop_made(tenant, upload_id, made)
            return made
        check_mapping(file_format, columns)
        file = self.uploads.file(tenant, upload_id)
        with file.held():
            upload = self.uploads.get(tenant, upload_id)
            committed = upload.committed_bytes
            if size_bytes != committed:
                raise InvalidUpload(
                    f"finish says {size_bytes} bytes; {committed} were received. Go on at that offset",
                    metadata={"committed_bytes": str(committed)},
                )
            try:
                if sha256 and file.sha256() != sha256:
                    raise InvalidUpload(
                        "the received bytes do not have the sha256 that finish names; upload again"
                    )
                content = _Content(file.path, file_format, columns)
                dataset = self._store(
                    tenant, upload.dataset_id, content, "upload", request, upload.committed_bytes
                )
            except (InvalidArgument, AlreadyExists):
                self.uploads.drop(tenant, upload_id)
                raise
            self.uploads.drop(tenant, upload_id)
        return dataset

    def _drop_made(self, tenant: str, upload_id: str, made: Dataset) -> None:
        """The upload that it was made of, if it is still there; another one may have its id by now."""
        with suppress(NotFound):
            if self.uploads.get(tenant, upload_id).dataset_id == ResourceName.parse(made.name, "datasets").id:
                self.uploads.drop(tenant, upload_id)

    def import_file(
        self,
        tenant: str,
        dataset_id: str,
        uri: str,
        request: RequestKey,
        file_format: DataFormat | None = None,
        columns: Mapping[str, str] = NO_COLUMNS,
    ) -> Dataset:
        """Store the file of a `file://` URI under one of the import roots, or of an URL under an import URL.

        `file_format` None takes what the file's name ends with, JSON lines where that tells nothing.

        Raises:
            InvalidField: the URI is not under a root or an import URL, or the mapping of columns cannot be followed.
            QuotaExceeded: the tenant may have no further dataset, or its storage has no room.
        """
        check_id(dataset_id, "dataset_id")
        made = self._made_before(request)
        if made is not None:
            return made
        file_format = file_format or format_of_name(uri) or DataFormat.JSONL
        check_mapping(file_format, columns)
        with TemporaryDirectory(dir=self._rows_directory, prefix=_VALIDATING) as temporary:
            if self._import_urls.claims(uri):
                path = self._import_urls.fetch(uri, Path(temporary) / "file", self._limits.max_bytes)
            else:
                path = self._import_roots.path_of(uri)
            return self._store(tenant, dataset_id, _Content(path, file_format, columns), uri, request)

    def get(self, tenant: str, dataset_id: str) -> Dataset:
        with self._database.read() as connection:
            found = self._find(connection, tenant, dataset_id)
        if found is None:
            raise NotFound.resource(str(ResourceName(tenant, "datasets", dataset_id)))
        return found

    def list(self, tenant: str, page: PageRequest, row_kind: RowKind | None = None) -> Page[Dataset]:
        """In order of name."""
        query = select(datasets).where(datasets.c.tenant == tenant, datasets.c.id > page.after)
        if row_kind is not None:
            query = query.where(datasets.c.row_kind == row_kind)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(datasets.c.id).limit(page.size + 1)).all()
        return page_of([(row.id, self._dataset(row)) for row in rows], page)

    def delete(self, tenant: str, dataset_id: str) -> None:
        """Delete a dataset that no unfinished job uses; its rows go when nothing else names them."""
        with self._database.begin() as connection:
            dataset = self._find(connection, tenant, dataset_id)
            if dataset is None:
                raise NotFound.resource(str(ResourceName(tenant, "datasets", dataset_id)))
            # Asked inside the transaction, so that no job comes in between.
            user = self._used_by(connection, tenant, dataset_id)
            if user:
                raise ResourceInUse(
                    f"{dataset.name} is used by {user}; cancel the job or wait for its end",
                    metadata={"used_by": user},
                )
            connection.execute(
                delete(datasets).where(datasets.c.tenant == tenant, datasets.c.id == dataset_id)
            )
        with self._database.begin() as connection:
            # Inside a writing transaction, so that no dataset with the same rows comes in between.
            naming = select(datasets.c.id).where(datasets.c.digest == dataset.digest)
            if connection.execute(naming.limit(1)).first() is None:
                dataset.path.unlink(missing_ok=True)

    def _store(
        self,
        tenant: str,
        dataset_id: str,
        content: _Content,
        source_name: str,
        request: RequestKey,
        upload_bytes: int | None = None,
    ) -> Dataset:
        """`upload_bytes` of an upload become the dataset; its place among the datasets is taken already."""
        name = str(ResourceName(tenant, "datasets", dataset_id))
        with self._validated(content) as (canonical, facts), self._database.begin() as connection:
            made = self._made(connection, request)
            if made is not None:
                return made
            stored = self._find(connection, tenant, dataset_id)
            if stored is not None and stored.digest != facts.digest:
                raise AlreadyExists(
                    f"{name} exists with other content ({stored.digest}); datasets never "
                    "change: choose another id, or delete it first",
                    metadata={"resource": name},
                )
            now = time.time()
            if stored is None:
                wanted = {
                    Limit.DATASETS: 1 if upload_bytes is None else 0,
                    Limit.STORAGE_BYTES: facts.size_bytes - (upload_bytes or 0),
                }
                self._tenant_limits.admit(connection, tenant, wanted)
                publish_file(canonical, self._rows_path(facts.digest))
                values: dict[str, object] = {
                    "tenant": tenant,
                    "id": dataset_id,
                    "digest": facts.digest,
                    "row_kind": facts.row_kind,
                    "rows": facts.rows,
                    "size_bytes": facts.size_bytes,
                    "create_time": now,
                    "source": source_name,
                    "report": facts.report.model_dump_json(),
                }
                stored = self._dataset(
                    connection.execute(insert(datasets).values(values).returning(datasets)).one()
                )
            idempotency.remember(connection, request, name, now)
            return stored

    def _made_before(self, request: RequestKey) -> Dataset | None:
        with self._database.read() as connection:
            return self._made(connection, request)

    def _made(self, connection: Connection, request: RequestKey) -> Dataset | None:
        """The dataset that this request made before, or None."""
        made = idempotency.recall(connection, request, time.time())
        if made is None:
            return None
        name = ResourceName.parse(made, "datasets")
        found = self._find(connection, name.tenant, name.id)
        if found is None:
            raise idempotency.deleted_since(made)
        return found

    @contextmanager
    def _validated(self, content: _Content) -> Generator[tuple[Path, DatasetFacts]]:
        with TemporaryDirectory(dir=self._rows_directory, prefix=_VALIDATING) as temporary:
            canonical = Path(temporary) / "rows.jsonl"
            with refusing_full_disk():
                facts = validate(content.path, canonical, self._limits, content.file_format, content.columns)
            yield canonical, facts

    def _find(self, connection: Connection, tenant: str, dataset_id: str) -> Dataset | None:
        query = select(datasets).where(datasets.c.tenant == tenant, datasets.c.id == dataset_id)
        row = connection.execute(query).one_or_none()
        return None if row is None else self._dataset(row)

    def _dataset(self, row: Row[Any]) -> Dataset:
        return Dataset(
            row.tenant,
            row.id,
            row.digest,
            RowKind(row.row_kind),
            row.rows,
            row.size_bytes,
            datetime.fromtimestamp(row.create_time, UTC),
            row.source,
            self._rows_path(row.digest),
            None if row.report is None else DatasetReport.model_validate_json(row.report),
        )

    def _rows_path(self, digest: str) -> Path:
        return self._rows_directory / f"{digest.removeprefix('sha256:')}.jsonl"
