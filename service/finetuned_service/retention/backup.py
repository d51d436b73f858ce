"""A copy of a data directory that is consistent although its server runs.

First the database, in one read transaction of SQLite's (https://www.sqlite.org/backup.html); then the files
that this copy names. In this order every name finds its file: files are published before the row that names
them is committed, and never change. What can happen is that a deletion or the sweep removes a row and then its
files after the database was copied. Then the copy is taken again, and names only what was still there; what
was copied already need not be copied again.

Uploads in progress and the directories of jobs are left out: both change while they are copied.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetuned_service import VERSION
from finetuned_service.adapters.files import stored_digest
from finetuned_service.bases.manifest import compute_digest, read_manifest
from finetuned_service.errors import FinetunedError, StartRefused, Unavailable
from finetuned_service.retention.backup_files import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    BackupFile,
    BackupManifest,
    Copier,
    Report,
    note,
    refuse_no_room,
    refuse_occupied,
)
from finetuned_service.retention.garbage import size_bytes
from finetuned_service.storage import schema
from finetuned_service.storage.directory import DATABASE_FILE
from finetuned_service.storage.files import write_atomically

_ROUNDS = 10
"""Copies of the database that are taken while things are being deleted."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Immutable content that a row names by its digest."""

    digest: str
    path: str
    """A file, or a flat directory, in the data directory."""
    digest_of: Callable[[Path], str]


def backup_directory(database: Path, data_dir: Path, destination: Path, report: Report) -> BackupManifest:
    """Copy `data_dir`, whose SQLite file is `database`, to `destination`.

    Raises:
        StartRefused: `destination` is occupied or has no room, the store is of a newer build, or something in
            `data_dir` is damaged. What has been copied lies there without a `backup.json`.
        Unavailable: things were deleted faster than they could be copied.
    """
    refuse_occupied(destination, "destination")
    needed = size_bytes(database) + sum(
        size_bytes(data_dir / room) for room in ("datasets", "adapters", "bases", "tenants")
    )
    refuse_no_room(destination, needed)
    copier = Copier(data_dir, destination, report)
    copier.total_bytes = needed - size_bytes(database)
    copied: dict[str, list[BackupFile]] = {}
    for _ in range(_ROUNDS):
        _copy_database(database, destination / DATABASE_FILE)
        blobs = _named_blobs(destination / DATABASE_FILE)
        missing = [blob for blob in blobs if not _copy_blob(blob, data_dir, destination, copier, copied)]
        if not missing:
            break
        _refuse_still_named(database, missing)
    else:
        raise Unavailable("things were deleted faster than they could be copied; try again")
    _drop_unnamed(destination, {blob.path for blob in blobs}, copied)
    bases = list(_copy_bases(data_dir, destination, copier))
    counts = _finish_database(destination / DATABASE_FILE) | {"bases": len(bases)}
    files = [note(destination, DATABASE_FILE), *(f for each in (*copied.values(), *bases) for f in each)]
    manifest = BackupManifest(
        format_version=FORMAT_VERSION,
        service_version=VERSION,
        schema_version=_schema_version(destination / DATABASE_FILE),
        create_time=datetime.now(UTC),
        files=tuple(files),
        counts=counts,
    )
    write_atomically(destination / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode() + b"\n")
    return manifest


def _copy_database(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
            # All pages in one step: one read transaction, which in WAL mode is in no writer's way.
            reading.backup(writing, pages=-1)
            # A copy that is one file, whichever program opens it.
            writing.execute("PRAGMA journal_mode = DELETE")
            found = writing.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise StartRefused(
            f"the store {source} cannot be copied: {error}; restore an older backup"
        ) from error
    if found != "ok":
        raise StartRefused(f"the store {source} is damaged: {found}; restore an older backup")
    version = _schema_version(target)
    if version > schema.SCHEMA_VERSION:
        target.unlink()
        raise StartRefused(
            f"the store has schema version {version}; this build reads up to {schema.SCHEMA_VERSION}. Make the "
            "backup with the build of its server"
        )


def _schema_version(database: Path) -> int:
    try:
        found = _rows(database, "SELECT value FROM meta WHERE key = 'schema_version'")
    except sqlite3.OperationalError as error:
        raise StartRefused(f"{database.name} is not a store of this service: {error}") from error
    return int(found[0][0])


def _named_blobs(database: Path) -> list[Blob]:
    datasets = [digest for (digest,) in _rows(database, "SELECT DISTINCT digest FROM datasets")]
    adapters = [digest for (digest,) in _rows(database, "SELECT DISTINCT digest FROM adapter_versions")]
    return [
        *(Blob(d, f"datasets/{d.removeprefix('sha256:')}.jsonl", _rows_digest) for d in datasets),
        *(Blob(d, f"adapters/{d.removeprefix('sha256:')}", stored_digest) for d in adapters),
    ]


def _rows_digest(path: Path) -> str:
    return f"sha256:{note(path.parent, path.name).sha256}"


def _copy_blob(
    blob: Blob, data_dir: Path, destination: Path, copier: Copier, copied: dict[str, list[BackupFile]]
) -> bool:
    """Copy what is not copied yet; False if it is no longer there."""
    if blob.path in copied:
        return True
    try:
        files = [copier.copy(path) for path in _paths(data_dir, blob.path)]
    except FileNotFoundError:
        return False
    try:
        found = blob.digest_of(destination / blob.path)
    except (FinetunedError, OSError) as error:
        # Half of a directory that was being removed cannot be read; a whole one that cannot is damaged.
        if not (data_dir / blob.path).exists():
            return False
        raise StartRefused(f"{data_dir / blob.path} is damaged: {error}; restore an older backup") from error
    if found != blob.digest:
        raise StartRefused(
            f"{data_dir / blob.path} has the digest {found}, its name says {blob.digest}: it was changed or "
            "damaged. Delete what names it, or restore an older backup"
        )
    copied[blob.path] = files
    return True


def _paths(data_dir: Path, path: str) -> list[str]:
    whole = data_dir / path
    return [path] if whole.is_file() else [f"{path}/{file.name}" for file in sorted(whole.iterdir())]


def _refuse_still_named(database: Path, missing: list[Blob]) -> None:
    """What a row still names and is not there will not come back."""
    with closing(sqlite3.connect(database)) as reading:
        for blob in missing:
            table = "datasets" if blob.path.startswith("datasets/") else "adapter_versions"
            query = f"SELECT 1 FROM {table} WHERE digest = ? LIMIT 1"  # noqa: S608 - one of two constants
            if reading.execute(query, (blob.digest,)).fetchone():
                raise StartRefused(
                    f"the store names {blob.path}, which is missing: the data directory is damaged. Delete what "
                    "names it, or restore an older backup"
                )


def _drop_unnamed(destination: Path, named: set[str], copied: dict[str, list[BackupFile]]) -> None:
    """Forget what an earlier copy of the database named and the last one does not."""
    for path in [path for path in copied if path not in named]:
        for file in copied.pop(path):
            (destination / file.path).unlink()
    for directory in (destination / "adapters").glob("*"):
        if f"adapters/{directory.name}" not in copied:
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()
    for file in (destination / "datasets").glob("*"):
        if f"datasets/{file.name}" not in copied:
            file.unlink()


def _copy_bases(data_dir: Path, destination: Path, copier: Copier) -> Iterator[list[BackupFile]]:
    """A base is made before the row of the job that made it, so each that the copy names is there."""
    for found in sorted([*data_dir.glob("bases/*/base.json"), *data_dir.glob("tenants/*/bases/*/base.json")]):
        base = found.parent
        if base.name.startswith("."):
            continue
        path = str(base.relative_to(data_dir))
        try:
            files = [copier.copy(f"{path}/{file.name}") for file in sorted(base.iterdir()) if file.is_file()]
        except FileNotFoundError:
            # It is being deleted; nothing needs it then.
            for file in (destination / path).glob("*"):
                file.unlink()
            continue
        said, is_now = read_manifest(destination / path).digest, compute_digest(destination / path)
        if said != is_now:
            raise StartRefused(
                f"{base} has the digest {is_now}, its manifest says {said}: it was changed or damaged. Delete it "
                "and add it again"
            )
        yield files


def _finish_database(database: Path) -> dict[str, int]:
    """Leave out what the backup leaves out; returns how much of each there is."""
    with closing(sqlite3.connect(database)) as writing:
        writing.execute("DELETE FROM uploads")
        writing.commit()
        return {
            table: writing.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]  # noqa: S608 - constants
            for table in ("datasets", "adapter_versions", "jobs")
        }


def _rows(database: Path, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(database)) as reading:
        return reading.execute(query).fetchall()
