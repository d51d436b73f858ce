"""Files that are whole or absent."""

from __future__ import annotations

import threading

import pytest
from finetuned_service.storage.files import (
    publish_directory,
    publish_file,
    remove_directory,
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
