"""Uploads in progress: which dataset each becomes, and the bytes that have come."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from finetuned_service.datasets.upload_file import UploadFile
from finetuned_service.errors import InvalidUpload, NotFound
from finetuned_service.names import ResourceName, check_id
from finetuned_service.storage.database import Database
from finetuned_service.storage.schema import uploads
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.stored import StoredLimits


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in progress."""

    dataset_id: str
    committed_bytes: int
    expire_time: datetime
    """Dropped then, unless it is finished."""


class Uploads:
    """Uploads over the database and `directory`.

    Args:
        database: where their names live.
        directory: where their bytes lie, by tenant.
        max_bytes: the largest upload.
        limits: what a tenant may keep.
        kept_seconds: how long one waits for its end; an abandoned one goes when the next one starts, or
            with the sweep.
    """

    def __init__(
        self, database: Database, directory: Path, max_bytes: int, limits: StoredLimits, kept_seconds: float
    ) -> None:
        self._database = database
        self._directory = directory
        self._max_bytes = max_bytes
        self._limits = limits
        self._kept_seconds = kept_seconds

    def start(self, tenant: str, upload_id: str, dataset_id: str) -> int:
        """Open an upload or continue one; returns the committed bytes.

        Raises:
            QuotaExceeded: the tenant has as many datasets, with those to come, as it may have.
        """
        check_id(upload_id, "start.upload_id")
        check_id(dataset_id, "start.dataset_id")
        now = time.time()
        file = self.file(tenant, upload_id)
        with self._database.begin() as connection:
            self._drop_abandoned(connection, now)
            found = _dataset_id(connection, tenant, upload_id)
            if found is None:
                self._limits.admit(connection, tenant, {Limit.DATASETS: 1})
                values = {"tenant": tenant, "id": upload_id, "dataset_id": dataset_id, "create_time": now}
                connection.execute(insert(uploads).values(values))
                file.begin()
            elif found != dataset_id:
                raise InvalidUpload(
                    f"upload {upload_id!r} was started for the dataset {found!r}, not {dataset_id!r}; "
                    "use a new upload id"
                )
            else:
                file.resume()
            return file.size_bytes()

    def get(self, tenant: str, upload_id: str) -> Upload:
        """An upload in progress.

        Raises:
            NotFound: there is no such upload, or it is finished.
        """
        own = select(uploads).where(uploads.c.tenant == tenant, uploads.c.id == upload_id)
        with self._database.read() as connection:
            row = connection.execute(own).one_or_none()
        file = self.file(tenant, upload_id)
        if row is None:
            raise NotFound.resource(str(file.name))
        expire_time = datetime.fromtimestamp(row.create_time + self._kept_seconds, UTC)
        return Upload(row.dataset_id, file.size_bytes(), expire_time)

    def append(self, tenant: str, upload_id: str, offset: int, data: bytes) -> int:
        """Add a chunk that begins at the committed bytes; returns the new committed bytes.

        Raises:
            InvalidUpload: for another offset (a repeated chunk, a gap), or more bytes than allowed.
            NotFound: there is no such upload, or it is finished.
            QuotaExceeded: the tenant's storage has no room for it; what was committed before stays.
        """
        file = self.file(tenant, upload_id)
        return file.append(offset, data, self._max_bytes, self._room_for(tenant, len(data)))

    @contextmanager
    def _room_for(self, tenant: str, more_bytes: int) -> Generator[None]:
        """A writing transaction that writes nothing: whoever counts after it finds the bytes in the file."""
        with self._database.begin() as connection:
            self._limits.admit(connection, tenant, {Limit.STORAGE_BYTES: more_bytes})
            yield

    def drop(self, tenant: str, upload_id: str) -> None:
        """Forget an upload and its bytes."""
        with self._database.begin() as connection:
            self._drop(connection, tenant, upload_id)

    def file(self, tenant: str, upload_id: str) -> UploadFile:
        """Where its bytes lie, whether it exists or not."""
        return UploadFile(ResourceName(tenant, "uploads", upload_id), self._directory / tenant / upload_id)

    def _drop_abandoned(self, connection: Connection, now: float) -> None:
        old = select(uploads.c.tenant, uploads.c.id).where(uploads.c.create_time < now - self._kept_seconds)
        for row in connection.execute(old).all():
            self._drop(connection, row.tenant, row.id)

    def _drop(self, connection: Connection, tenant: str, upload_id: str) -> None:
        connection.execute(delete(uploads).where(uploads.c.tenant == tenant, uploads.c.id == upload_id))
        # Inside the transaction: one that starts under the same id waits, and then begins a new file.
        self.file(tenant, upload_id).remove()


def _dataset_id(connection: Connection, tenant: str, upload_id: str) -> str | None:
    return connection.scalar(
        select(uploads.c.dataset_id).where(uploads.c.tenant == tenant, uploads.c.id == upload_id)
    )
