"""Datasets and the uploads that become them.

An upload is a file that only grows; a dataset is a row in the database that names canonical rows by
their digest. Refused content leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from sqlalchemy import Connection, delete, insert, select

from finetuned_service.datasets.rows import RowKind
from finetuned_service.datasets.validation import DataLimits, DatasetFacts, validate_jsonl
from finetuned_service.errors import AlreadyExists, InvalidField, InvalidUpload, NotFound, ResourceInUse
from finetuned_service.names import ResourceName, check_id
from finetuned_service.storage import idempotency
from finetuned_service.storage.database import Database
from finetuned_service.storage.files import publish_file
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import Page, PageRequest, page_of
from finetuned_service.storage.schema import datasets, uploads


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
        used_by: the name of an unfinished job that uses (tenant, dataset), or "".
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        limits: DataLimits,
        import_roots: tuple[Path, ...],
        used_by: Callable[[str, str], str],
    ) -> None:
        self._database = database
        self._rows_directory = directory / "datasets"
        self._uploads_directory = directory / "uploads"
        self._limits = limits
        self._import_roots = tuple(root.resolve() for root in import_roots)
        self._used_by = used_by
        for needed in (self._rows_directory, self._uploads_directory):
            needed.mkdir(parents=True, exist_ok=True)

    def start_upload(self, tenant: str, upload_id: str, dataset_id: str) -> int:
        """Open an upload or continue one; returns the committed bytes."""
        check_id(upload_id, "start.upload_id")
        check_id(dataset_id, "start.dataset_id")
        with self._database.begin() as connection:
            found = self._upload_target(connection, tenant, upload_id)
            if found is None:
                connection.execute(
                    insert(uploads).values(
                        tenant=tenant, id=upload_id, dataset_id=dataset_id, create_time=time.time()
                    )
                )
            elif found != dataset_id:
                raise InvalidUpload(
                    f"upload {upload_id!r} was started for the dataset {found!r}, not {dataset_id!r}; "
                    "use a new upload id"
                )
            path = self._upload_path(tenant, upload_id)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return path.stat().st_size

    def committed_bytes(self, tenant: str, upload_id: str) -> tuple[int, str]:
        """How many bytes of an upload are kept, and the id of the dataset it becomes."""
        with self._database.read() as connection:
            target = self._upload_target(connection, tenant, upload_id)
        if target is None:
            raise NotFound.resource(str(ResourceName(tenant, "uploads", upload_id)))
        return self._upload_path(tenant, upload_id).stat().st_size, target

    def append(self, tenant: str, upload_id: str, offset: int, data: bytes) -> int:
        """Add a chunk that begins at the committed bytes; returns the new committed bytes.

        Raises:
            InvalidUpload: for another offset (a repeated chunk, a gap), or more bytes than allowed.
        """
        path = self._upload_path(tenant, upload_id)
        committed = path.stat().st_size
        if offset != committed:
            raise InvalidUpload(
                f"chunk offset is {offset}, expected {committed}: chunks come once and in order; go on at "
                "the committed bytes that GetUpload tells",
                metadata={"committed_bytes": str(committed)},
            )
        if committed + len(data) > self._limits.max_bytes:
            raise InvalidUpload(
                f"the upload would have {committed + len(data)} bytes; allowed: {self._limits.max_bytes}"
            )
        with path.open("ab") as file:
            file.write(data)
        return committed + len(data)

    def finish(
        self, tenant: str, upload_id: str, size_bytes: int, sha256: bytes, request: RequestKey
    ) -> Dataset:
        """Validate the upload and store it as its dataset; the upload is gone afterwards.

        Raises:
            InvalidUpload: the bytes are not the ones announced; the upload can go on.
            InvalidData: rows are refused; the upload is dropped and nothing is stored.
            AlreadyExists: the dataset exists with other content.
        """
        with self._database.read() as connection:
            made = idempotency.recall(connection, request, time.time())
        if made is not None:
            return self.get(tenant, ResourceName.parse(made, "datasets").id)
        committed, dataset_id = self.committed_bytes(tenant, upload_id)
        path = self._upload_path(tenant, upload_id)
        if size_bytes != committed:
            raise InvalidUpload(
                f"finish says {size_bytes} bytes; {committed} were received. Go on at that offset",
                metadata={"committed_bytes": str(committed)},
            )
        if sha256 and hashlib.sha256(path.read_bytes()).digest() != sha256:
            self._drop_upload(tenant, upload_id)
            raise InvalidUpload("the received bytes do not have the sha256 that finish names; upload again")
        try:
            return self._store(tenant, dataset_id, path, "upload", request)
        finally:
            self._drop_upload(tenant, upload_id)

    def import_file(self, tenant: str, dataset_id: str, uri: str, request: RequestKey) -> Dataset:
        """Store the file of a `file://` URI under one of the import roots."""
        check_id(dataset_id, "dataset_id")
        return self._store(tenant, dataset_id, self._allowed_path(uri), uri, request)

    def get(self, tenant: str, dataset_id: str) -> Dataset:
        with self._database.read() as connection:
            found = self._find(connection, tenant, dataset_id)
        if found is None:
            raise NotFound.resource(str(ResourceName(tenant, "datasets", dataset_id)))
        return found

    def list(self, tenant: str, page: PageRequest, row_kind: RowKind | None = None) -> Page[Dataset]:
        """In order of name."""
        query = select(datasets.c.id).where(datasets.c.tenant == tenant, datasets.c.id > page.after)
        if row_kind is not None:
            query = query.where(datasets.c.row_kind == row_kind)
        with self._database.read() as connection:
            ids = connection.scalars(query.order_by(datasets.c.id).limit(page.size + 1)).all()
            found = [self._find(connection, tenant, dataset_id) for dataset_id in ids]
        return page_of([(item.id, item) for item in found if item is not None], page.size)

    def delete(self, tenant: str, dataset_id: str) -> None:
        """Delete a dataset that no unfinished job uses; its rows go when nothing else names them."""
        dataset = self.get(tenant, dataset_id)
        user = self._used_by(tenant, dataset_id)
        if user:
            raise ResourceInUse(
                f"{dataset.name} is used by {user}; cancel the job or wait for its end",
                metadata={"used_by": user},
            )
        with self._database.begin() as connection:
            connection.execute(
                delete(datasets).where(datasets.c.tenant == tenant, datasets.c.id == dataset_id)
            )
            others = connection.scalar(
                select(datasets.c.id).where(datasets.c.digest == dataset.digest).limit(1)
            )
            if others is None:
                dataset.path.unlink(missing_ok=True)

    def _store(
        self, tenant: str, dataset_id: str, source: Path, source_name: str, request: RequestKey
    ) -> Dataset:
        with self._validated(source) as (canonical, facts), self._database.begin() as connection:
            made = idempotency.recall(connection, request, time.time())
            existing = self._find(connection, tenant, dataset_id)
            if existing is not None:
                if made is None and existing.digest != facts.digest:
                    raise AlreadyExists(
                        f"{existing.name} exists with other content ({existing.digest}); datasets never "
                        "change: choose another id, or delete it first",
                        metadata={"resource": existing.name},
                    )
                return existing
            publish_file(canonical, self._rows_path(facts.digest))
            connection.execute(
                insert(datasets).values(
                    tenant=tenant,
                    id=dataset_id,
                    digest=facts.digest,
                    row_kind=facts.row_kind,
                    rows=facts.rows,
                    size_bytes=facts.size_bytes,
                    create_time=time.time(),
                    source=source_name,
                )
            )
            idempotency.remember(connection, request, f"tenants/{tenant}/datasets/{dataset_id}", time.time())
            stored = self._find(connection, tenant, dataset_id)
        if stored is None:
            raise NotFound.resource(f"tenants/{tenant}/datasets/{dataset_id}")
        return stored

    @contextmanager
    def _validated(self, source: Path) -> Iterator[tuple[Path, DatasetFacts]]:
        with TemporaryDirectory(dir=self._rows_directory, prefix=".validating-") as temporary:
            canonical = Path(temporary) / "rows.jsonl"
            yield canonical, validate_jsonl(source, canonical, self._limits)

    def _find(self, connection: Connection, tenant: str, dataset_id: str) -> Dataset | None:
        row = connection.execute(
            select(datasets).where(datasets.c.tenant == tenant, datasets.c.id == dataset_id)
        ).one_or_none()
        if row is None:
            return None
        created = datetime.fromtimestamp(row.create_time, UTC)
        kind, path = RowKind(row.row_kind), self._rows_path(row.digest)
        return Dataset(
            tenant, dataset_id, row.digest, kind, row.rows, row.size_bytes, created, row.source, path
        )

    def _upload_target(self, connection: Connection, tenant: str, upload_id: str) -> str | None:
        return connection.scalar(
            select(uploads.c.dataset_id).where(uploads.c.tenant == tenant, uploads.c.id == upload_id)
        )

    def _drop_upload(self, tenant: str, upload_id: str) -> None:
        with self._database.begin() as connection:
            connection.execute(delete(uploads).where(uploads.c.tenant == tenant, uploads.c.id == upload_id))
        self._upload_path(tenant, upload_id).unlink(missing_ok=True)

    def _rows_path(self, digest: str) -> Path:
        return self._rows_directory / f"{digest.removeprefix('sha256:')}.jsonl"

    def _upload_path(self, tenant: str, upload_id: str) -> Path:
        return self._uploads_directory / tenant / upload_id

    def _allowed_path(self, uri: str) -> Path:
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
            raise InvalidField.one("uri", f"is {uri!r}; allowed: file:///… under one of the import roots")
        path = Path(unquote(parts.path)).resolve()
        if not any(path.is_relative_to(root) for root in self._import_roots):
            allowed = ", ".join(map(str, self._import_roots)) or "none: set import_roots of the server"
            raise InvalidField.one("uri", f"{uri!r} is not under an import root; allowed: {allowed}")
        if not path.is_file():
            raise InvalidField.one("uri", f"{uri!r} is not a file on the server")
        return path
