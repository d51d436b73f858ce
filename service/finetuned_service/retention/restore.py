"""A new data directory from a backup."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from finetuned_service.errors import StartRefused
from finetuned_service.retention.backup_files import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    BackupManifest,
    Copier,
    Report,
    refuse_no_room,
    refuse_occupied,
)
from finetuned_service.storage import schema
from finetuned_service.storage.directory import DATABASE_FILE, holding


def restore_directory(source: Path, data_dir: Path, report: Report) -> BackupManifest:
    """Copy the backup in `source` to the new directory `data_dir`, and compare every file.

    Raises:
        StartRefused: `source` is no backup, of a newer build or damaged; `data_dir` is occupied or has no
            room. The database comes last: without it nothing takes the directory for a whole one.
    """
    manifest = _read_manifest(source)
    refuse_occupied(data_dir, "data_dir")
    refuse_no_room(data_dir, manifest.size_bytes)
    with holding(data_dir):
        copier = Copier(source, data_dir, report)
        copier.total_bytes = manifest.size_bytes
        for file in sorted(manifest.files, key=lambda file: file.path == DATABASE_FILE):
            try:
                found = copier.copy(file.path)
            except FileNotFoundError as error:
                raise StartRefused(f"the backup lacks {file.path}; use another backup") from error
            if found != file:
                (data_dir / file.path).unlink()
                raise StartRefused(
                    f"{source / file.path} has the sha256 {found.sha256}, {MANIFEST_FILE} says {file.sha256}: "
                    "the backup is damaged; use another"
                )
    return manifest


def _read_manifest(source: Path) -> BackupManifest:
    try:
        manifest = BackupManifest.model_validate_json((source / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise StartRefused(
            f"{source} is not a whole backup: {MANIFEST_FILE} cannot be read ({error.strerror})"
        ) from error
    except ValidationError as error:
        raise StartRefused(
            f"{source / MANIFEST_FILE} is not one that this build reads; use the build that wrote it"
        ) from error
    for what, found, most in (
        ("format", manifest.format_version, FORMAT_VERSION),
        ("schema", manifest.schema_version, schema.SCHEMA_VERSION),
    ):
        if found > most:
            raise StartRefused(
                f"the backup has {what} version {found}; this build reads up to {most}. Restore it with the build "
                f"that wrote it ({manifest.service_version}) or a newer one"
            )
    for file in manifest.files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise StartRefused(
                f"the backup names {file.path!r}, which lies outside of it; use another backup"
            )
    return manifest
