"""Files that are whole or absent."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from finetuned_service.errors import ResourceExhausted
from finetuned_service.storage.files import (
    publish_directory,
    publish_file,
    refusing_full_disk,
    remove_directory,
    sweep_leftovers,
    write_atomically,
)


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def staged(tmp_path):
    directory = tmp_path / "staged"
    directory.mkdir()
    (directory / "weights").write_bytes(b"new")
    return directory


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "task.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["task.json"])


def test_a_write_that_fails_leaves_nothing(tmp_path):
    taken = tmp_path / "task.json"
    taken.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(taken, b"new")
    assert names(tmp_path) == ["task.json"]


def test_writers_in_one_process_never_mix(tmp_path):
    path = tmp_path / "state"
    contents = [bytes([i]) * 4096 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["state"]


def test_publish_file_moves_it(tmp_path):
    (tmp_path / "rows").write_bytes(b"rows")
    publish_file(tmp_path / "rows", tmp_path / "digest")
    assert names(tmp_path) == ["digest"]


def test_publish_file_keeps_what_is_there(tmp_path):
    (tmp_path / "digest").write_bytes(b"rows")
    inode = (tmp_path / "digest").stat().st_ino
    (tmp_path / "rows").write_bytes(b"rows")
    publish_file(tmp_path / "rows", tmp_path / "digest")
    assert (names(tmp_path), (tmp_path / "digest").stat().st_ino) == (["digest"], inode)


def test_publish_directory_moves_it(tmp_path, staged):
    publish_directory(staged, tmp_path / "digest")
    assert names(tmp_path) == ["digest"]
    assert (tmp_path / "digest" / "weights").read_bytes() == b"new"


def test_publish_directory_keeps_what_is_there(tmp_path, staged):
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "weights").write_bytes(b"first")
    publish_directory(staged, tmp_path / "digest")
    assert names(tmp_path) == ["digest"]
    assert (tmp_path / "digest" / "weights").read_bytes() == b"first"


def test_publish_directory_replaces_what_is_damaged_and_leaves_readers_theirs(tmp_path, staged):
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "weights").write_bytes(b"bad")
    with (tmp_path / "digest" / "weights").open("rb") as reader:
        publish_directory(staged, tmp_path / "digest", damaged=True)
        assert reader.read() == b"bad"
    assert names(tmp_path) == ["digest"]
    assert (tmp_path / "digest" / "weights").read_bytes() == b"new"


def test_publish_directory_without_anything_to_publish_keeps_what_is_damaged(tmp_path):
    (tmp_path / "digest").mkdir()
    publish_directory(tmp_path / "absent", tmp_path / "digest", damaged=True)
    assert names(tmp_path) == ["digest"]


def test_publish_directory_may_be_repeated(tmp_path, staged):
    publish_directory(staged, tmp_path / "digest")
    publish_directory(staged, tmp_path / "digest")
    assert (tmp_path / "digest" / "weights").read_bytes() == b"new"


def test_publish_directory_without_anything_to_publish_fails(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish_directory(tmp_path / "absent", tmp_path / "digest")
    assert names(tmp_path) == []


def test_remove_directory_removes_all_of_it(tmp_path, staged):
    remove_directory(staged)
    remove_directory(staged)
    assert names(tmp_path) == []


def test_an_open_file_outlives_the_removal_of_its_directory(staged):
    with (staged / "weights").open("rb") as file:
        remove_directory(staged)
        assert file.read() == b"new"


def test_a_full_disk_is_a_refusal_and_other_faults_are_not(tmp_path):
    def write(path: Path) -> None:
        with refusing_full_disk(), path.open("wb", buffering=0) as file:
            file.write(b"data")

    with pytest.raises(ResourceExhausted, match="no room"):
        write(Path("/dev/full"))
    with pytest.raises(IsADirectoryError):
        write(tmp_path)


def test_what_a_crash_left_is_swept_when_it_is_old(tmp_path):
    for name, age_seconds in ((".old", 2 * 24 * 3600), (".young", 60), ("kept", 2 * 24 * 3600)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x")
        then = time.time() - age_seconds
        os.utime(tmp_path / name, (then, then))
    sweep_leftovers(tmp_path, ".*")
    assert names(tmp_path) == [".young", "kept"]
    sweep_leftovers(tmp_path / "absent", "*")
