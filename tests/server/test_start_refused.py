"""What a server finds in its data directory and does not start on; all of it is left as it was."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from finetuned_service.errors import StartRefused
from finetuned_service.storage import directory as data_directory
from tiny_server import running


def refused(data: Path, **settings: object) -> str:
    with pytest.raises(StartRefused) as refusal, running(data, **settings):
        pass
    return refusal.value.message


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_full_disk_is_told_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=12_345)
    monkeypatch.setattr(data_directory.shutil, "disk_usage", lambda _path: usage)
    message = refused(tmp_path)
    assert "has 12,345 bytes free; at least 268,435,456 (min_free_disk_bytes) are needed" in message
    assert "finetuned gc" in message
    assert files(tmp_path) == {}


def test_a_directory_of_a_newer_build_is_refused_before_a_base_is_fetched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "finetuned.db") as raw:
        raw.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
        raw.execute("INSERT INTO meta VALUES ('schema_version', '99')")
    raw.close()
    message = refused(tmp_path, base="smollm2-135m-instruct")
    assert "schema version 99; this build reads up to" in message
    assert "Run the newer build, or restore a backup made before it" in message
    assert not (tmp_path / "bases").exists()
    with sqlite3.connect(tmp_path / "finetuned.db") as raw:
        assert raw.execute("SELECT name, type FROM sqlite_master WHERE type = 'table'").fetchall() == [
            ("meta", "table")
        ]
    raw.close()


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "finetuned.db").write_bytes(b"no database at all, but long enough to look" * 100)
    before = files(tmp_path)
    assert "restore a backup" in refused(tmp_path)
    assert files(tmp_path) == before
