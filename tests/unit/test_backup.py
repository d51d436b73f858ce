"""Backups: consistent whatever is deleted meanwhile, verified, and refused where they would do harm."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from finetuned_service.errors import StartRefused
from finetuned_service.retention import backup as backing
from finetuned_service.retention.backup import backup_directory
from finetuned_service.retention.backup_files import MANIFEST_FILE
from finetuned_service.retention.restore import restore_directory
from finetuned_service.storage import schema
from finetuned_service.storage.files import hide_directory
from retention_place import ROWS, Place
from tiny_jobs import NO_REQUEST, TENANT


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data directory with two datasets and an adapter of unreadable weights, which count as their letter."""
    directory = tmp_path / "data"
    directory.mkdir()
    found = Place(directory)
    for name, rows in (("one", ROWS), ("two", ROWS * 2)):
        found.datasets.uploads.start(TENANT, "up", name)
        found.datasets.uploads.append(TENANT, "up", 0, rows)
        found.datasets.finish(TENANT, "up", len(rows), b"", NO_REQUEST)
    found.version("a")
    found.datasets.uploads.start(TENANT, "up", "unfinished")
    monkeypatch.setattr(backing, "stored_digest", letter_digest)
    yield found
    found.close()


def letter_digest(directory: Path) -> str:
    letters = (directory / "adapter_model.safetensors").read_text()
    return f"sha256:{letters[:64]}"


def back_up(place, destination, report=lambda *_: None):
    return backup_directory(place.directory / "finetuned.db", place.directory, destination, report)


def test_a_restored_backup_is_the_directory_without_uploads(place, tmp_path):
    told: list[tuple[str, int, int]] = []
    made = back_up(place, tmp_path / "copy", lambda *step: told.append(step))
    assert made.counts == {"datasets": 2, "adapter_versions": 1, "jobs": 0, "bases": 0}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert all(done <= total for _, done, total in told)
    restore_directory(tmp_path / "copy", tmp_path / "new", lambda *_: None)
    restored = Place(tmp_path / "new")
    assert restored.files() - {".lock"} == place.files() - {"uploads/acme/up"}
    restored.check_named_files()
    assert restored.datasets.get(TENANT, "two").rows == 2
    assert restored.versions() == ["redact/1"]
    with restored.database.read() as connection:
        assert connection.execute(schema.uploads.select()).all() == []
    restored.close()


def test_what_is_deleted_after_the_database_was_copied_is_not_in_the_backup(place, tmp_path, monkeypatch):
    copies: list[int] = []
    copy_database = backing._copy_database

    def copy_then_delete(source: Path, target: Path) -> None:
        copy_database(source, target)
        copies.append(1)
        if len(copies) == 1:
            place.datasets.delete(TENANT, "two")

    monkeypatch.setattr(backing, "_copy_database", copy_then_delete)
    assert back_up(place, tmp_path / "copy").counts["datasets"] == 1
    assert len(copies) == 2
    restore_directory(tmp_path / "copy", tmp_path / "new", lambda *_: None)
    restored = Place(tmp_path / "new")
    restored.check_named_files()
    restored.close()


def test_a_file_that_is_missing_although_it_is_named_is_damage(place, tmp_path):
    place.datasets.get(TENANT, "two").path.unlink()
    with pytest.raises(
        StartRefused, match=r"names datasets/.*, which is missing: the data directory is damaged"
    ):
        back_up(place, tmp_path / "copy")
    assert not (tmp_path / "copy" / MANIFEST_FILE).exists()


def test_a_changed_file_is_refused(place, tmp_path):
    place.datasets.get(TENANT, "two").path.write_bytes(b"changed\n")
    with pytest.raises(StartRefused, match="was changed or damaged"):
        back_up(place, tmp_path / "copy")


def test_a_half_removed_directory_is_not_in_the_backup(place, tmp_path, monkeypatch):
    name = place.version("c")
    copy_blob = backing._copy_blob

    def vanishing(blob, data_dir, *rest):
        if blob.path.startswith("adapters/c") and (data_dir / blob.path).exists():
            from finetuned_service.names import AdapterSelector

            place.registry.delete_version(AdapterSelector.parse(name))
        return copy_blob(blob, data_dir, *rest)

    monkeypatch.setattr(backing, "_copy_blob", vanishing)
    assert back_up(place, tmp_path / "copy").counts["adapter_versions"] == 1
    assert not list((tmp_path / "copy").glob("adapters/c*"))


def test_an_occupied_destination_is_refused_and_left_alone(place, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("x")
    with pytest.raises(StartRefused, match="is not empty: it holds mine"):
        back_up(place, tmp_path / "copy")
    made = tmp_path / "made"
    back_up(place, made)
    with pytest.raises(StartRefused, match="is not empty"):
        restore_directory(made, tmp_path / "copy", lambda *_: None)
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mine"]


def test_a_disk_without_room_is_refused_first(place, tmp_path, monkeypatch):
    from finetuned_service.retention import backup_files

    class Full:
        free = 10

    monkeypatch.setattr(backup_files.shutil, "disk_usage", lambda _path: Full)
    with pytest.raises(StartRefused, match=r"has 10 bytes free; [\d,]+ are needed"):
        back_up(place, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2; this build reads up to 1"),
        (
            {"schema_version": schema.SCHEMA_VERSION + 1},
            f"schema version {schema.SCHEMA_VERSION + 1}; this build",
        ),
        ({"files": [{"path": "../x", "size_bytes": 0, "sha256": ""}]}, "lies outside of it"),
    ],
)
def test_a_backup_of_a_newer_build_or_with_strange_paths_is_refused(place, tmp_path, change, message):
    back_up(place, tmp_path / "copy")
    page = tmp_path / "copy" / MANIFEST_FILE
    page.write_text(json.dumps(json.loads(page.read_text()) | change))
    with pytest.raises(StartRefused, match=message):
        restore_directory(tmp_path / "copy", tmp_path / "new", lambda *_: None)
    assert not (tmp_path / "new").exists()


def test_a_damaged_or_unfinished_backup_is_refused(place, tmp_path):
    back_up(place, tmp_path / "copy")
    rows = next((tmp_path / "copy" / "datasets").iterdir())
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(StartRefused, match="the backup is damaged; use another"):
        restore_directory(tmp_path / "copy", tmp_path / "new", lambda *_: None)
    assert not (tmp_path / "new" / "finetuned.db").exists()
    (tmp_path / "copy" / MANIFEST_FILE).unlink()
    with pytest.raises(StartRefused, match="is not a whole backup"):
        restore_directory(tmp_path / "copy", tmp_path / "other", lambda *_: None)


def test_a_store_of_a_newer_build_is_refused(place, tmp_path):
    with sqlite3.connect(place.directory / "finetuned.db") as raw:
        raw.execute("UPDATE meta SET value = '99'")
    raw.close()
    with pytest.raises(StartRefused, match="schema version 99"):
        back_up(place, tmp_path / "copy")


def test_hiding_a_directory_that_is_gone_says_so(tmp_path):
    assert hide_directory(tmp_path / "gone") is None
