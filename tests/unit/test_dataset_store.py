"""Datasets, the uploads that become them, and what a refusal leaves behind: nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time

import pytest
from finetuned_service.datasets.formats.choose import DataFormat
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.datasets.validation import DataLimits
from finetuned_service.errors import (
    AlreadyExists,
    InvalidData,
    InvalidField,
    InvalidUpload,
    NotFound,
    RequestIdReused,
    ResourceExhausted,
    ResourceInUse,
    Unavailable,
)
from finetuned_service.jobs.store import JobStore
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.storage.retention import Retention
from finetuned_service.storage.schema import uploads
from sqlalchemy import event, update
from tiny_data import archive, picture
from tiny_limits import stored_limits

TENANT = "acme"
NO_REQUEST = RequestKey.of(TENANT, "", b"")
MAX_BYTES = 2000


def lines(*completions: str) -> bytes:
    rows = [{"prompt": "say it", "completion": completion} for completion in completions]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS = lines("one", "two")


@pytest.fixture
def used() -> set[tuple[str, str]]:
    """(tenant, dataset) pairs that an unfinished job uses."""
    return set()


@pytest.fixture
def store(tmp_path, database, used):
    (tmp_path / "shared").mkdir(exist_ok=True)

    def used_by(_connection, tenant: str, dataset_id: str) -> str:
        return "tenants/acme/jobs/train-1" if (tenant, dataset_id) in used else ""

    limits = DataLimits(max_bytes=MAX_BYTES)
    return DatasetStore(database, tmp_path, limits, (tmp_path / "shared",), used_by, stored_limits(tmp_path))


def upload(store, data: bytes = ROWS, dataset_id: str = "rows", *, tenant: str = TENANT, request=NO_REQUEST):
    store.uploads.start(tenant, "up", dataset_id)
    store.uploads.append(tenant, "up", 0, data)
    return store.finish(tenant, "up", len(data), hashlib.sha256(data).digest(), request)


def committed(store) -> tuple[int, str]:
    upload = store.uploads.get(TENANT, "up")
    return upload.committed_bytes, upload.dataset_id


def kept(tmp_path) -> list[str]:
    """Everything in the rooms of datasets and uploads, but for the directory of each tenant."""
    return sorted(
        path.name
        for room in ("datasets", "uploads")
        for path in (tmp_path / room).rglob("*")
        if path.is_file()
    )


# Uploads


def test_an_upload_becomes_a_dataset_of_canonical_rows(store, tmp_path):
    before = time.time()
    dataset = upload(store, b"\xef\xbb\xbf" + ROWS.replace(b"\n", b"\r\n\r\n"))
    assert dataset == store.get(TENANT, "rows")
    assert [json.loads(line) for line in dataset.path.read_text().splitlines()] == [
        {"prompt": "say it", "completion": "one"},
        {"prompt": "say it", "completion": "two"},
    ]
    assert (dataset.row_kind, dataset.rows, dataset.source) == (RowKind.PROMPT_COMPLETION, 2, "upload")
    assert dataset.digest == f"sha256:{hashlib.sha256(dataset.path.read_bytes()).hexdigest()}"
    assert dataset.size_bytes == dataset.path.stat().st_size
    assert before <= dataset.create_time.timestamp() <= time.time()
    assert kept(tmp_path) == [dataset.path.name]


def test_a_broken_upload_goes_on_where_it_ended(store):
    assert store.uploads.start(TENANT, "up", "rows") == 0
    assert store.uploads.append(TENANT, "up", 0, ROWS[:10]) == 10
    assert store.uploads.start(TENANT, "up", "rows") == 10
    assert committed(store) == (10, "rows")
    assert store.uploads.append(TENANT, "up", 10, ROWS[10:]) == len(ROWS)
    assert store.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST).rows == 2


@pytest.mark.parametrize("offset", [0, 9, 11, -1])
def test_a_chunk_anywhere_else_is_refused_and_says_where_to_go_on(store, offset):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS[:10])
    with pytest.raises(InvalidUpload, match=f"offset is {offset}, expected 10") as refusal:
        store.uploads.append(TENANT, "up", offset, ROWS[10:])
    assert refusal.value.metadata == {"committed_bytes": "10"}
    assert committed(store) == (10, "rows")


def test_of_two_streams_with_the_same_chunk_one_is_taken(store):
    store.uploads.start(TENANT, "up", "rows")
    refusals: list[InvalidUpload] = []

    def send() -> None:
        for offset in range(0, len(ROWS), 5):
            try:
                store.uploads.append(TENANT, "up", offset, ROWS[offset : offset + 5])
            except InvalidUpload as error:
                refusals.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chunks = len(range(0, len(ROWS), 5))
    assert len(refusals) == 3 * chunks
    assert store.finish(TENANT, "up", len(ROWS), hashlib.sha256(ROWS).digest(), NO_REQUEST).rows == 2


def test_an_upload_over_the_limit_is_refused(store):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, bytes(MAX_BYTES))
    with pytest.raises(InvalidUpload, match=f"would have {MAX_BYTES + 1} bytes; allowed: {MAX_BYTES}"):
        store.uploads.append(TENANT, "up", MAX_BYTES, b"x")
    assert committed(store) == (MAX_BYTES, "rows")


def test_a_full_disk_is_told_and_the_upload_can_go_on(store, tmp_path):
    store.uploads.start(TENANT, "up", "rows")
    path = tmp_path / "uploads" / TENANT / "up"
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(ResourceExhausted, match="no room"):
        store.uploads.append(TENANT, "up", 0, ROWS)
    path.unlink()
    assert store.uploads.start(TENANT, "up", "rows") == 0
    assert upload(store).rows == 2


def test_an_upload_that_fills_the_disk_gives_back_its_bytes_and_begins_again(store, monkeypatch):
    from finetuned_service.datasets import upload_file

    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS[:10])

    def full(file, data: bytes) -> None:
        file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(upload_file, "_write_all", full)
        with pytest.raises(ResourceExhausted, match="no room"):
            store.uploads.append(TENANT, "up", 10, ROWS[10:])
    assert committed(store) == (0, "rows")
    assert store.uploads.append(TENANT, "up", 0, ROWS) == len(ROWS)
    assert store.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST).rows == 2


def test_an_upload_belongs_to_one_dataset(store):
    store.uploads.start(TENANT, "up", "rows")
    with pytest.raises(InvalidUpload, match="started for the dataset 'rows', not 'other'"):
        store.uploads.start(TENANT, "up", "other")


@pytest.mark.parametrize(
    ("upload_id", "dataset_id"), [("../up", "rows"), ("up", "../rows"), ("", "rows"), ("up", "R")]
)
def test_illegal_ids_are_refused(store, tmp_path, upload_id, dataset_id):
    with pytest.raises(InvalidField):
        store.uploads.start(TENANT, upload_id, dataset_id)
    assert kept(tmp_path) == []


def test_uploads_of_tenants_are_apart(store):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS)
    assert store.uploads.start("other", "up", "rows") == 0
    with pytest.raises(NotFound):
        store.uploads.get("third", "up")


def test_what_was_never_started_is_not_found(store):
    for call in (
        lambda: store.uploads.append(TENANT, "up", 0, b"x"),
        lambda: store.uploads.get(TENANT, "up"),
        lambda: store.finish(TENANT, "up", 0, b"", NO_REQUEST),
    ):
        with pytest.raises(NotFound, match="uploads/up"):
            call()


def test_a_new_upload_does_not_begin_with_what_a_crash_left(store, tmp_path):
    (tmp_path / "uploads" / TENANT).mkdir()
    (tmp_path / "uploads" / TENANT / "up").write_bytes(b"of an upload whose row is gone")
    assert store.uploads.start(TENANT, "up", "rows") == 0


def test_an_upload_whose_file_was_lost_begins_again(store, tmp_path):
    store.uploads.start(TENANT, "up", "rows")
    (tmp_path / "uploads" / TENANT / "up").unlink()
    with pytest.raises(NotFound):
        store.uploads.get(TENANT, "up")
    assert store.uploads.start(TENANT, "up", "rows") == 0
    assert store.uploads.append(TENANT, "up", 0, b"x") == 1


def test_an_abandoned_upload_is_dropped_when_the_next_one_starts(store, database, tmp_path):
    store.uploads.start(TENANT, "old", "rows")
    store.uploads.start(TENANT, "young", "rows")
    with database.begin() as connection:
        long_ago = time.time() - Retention().uploads_seconds - 1
        connection.execute(update(uploads).where(uploads.c.id == "old").values(create_time=long_ago))
    store.uploads.start("other", "next", "rows")
    assert kept(tmp_path) == ["next", "young"]
    with pytest.raises(NotFound):
        store.uploads.get(TENANT, "old")


# The end of an upload


def test_a_wrong_size_can_go_on(store):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS[:10])
    with pytest.raises(InvalidUpload, match="10 were received") as refusal:
        store.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST)
    assert refusal.value.metadata == {"committed_bytes": "10"}
    store.uploads.append(TENANT, "up", 10, ROWS[10:])
    assert store.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST).rows == 2


@pytest.mark.parametrize("sha256", [hashlib.sha256(b"else").digest(), b"short"])
def test_a_wrong_sha256_drops_the_upload(store, tmp_path, sha256):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS)
    with pytest.raises(InvalidUpload, match="sha256"):
        store.finish(TENANT, "up", len(ROWS), sha256, NO_REQUEST)
    assert kept(tmp_path) == []
    with pytest.raises(NotFound):
        store.get(TENANT, "rows")


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b'{"prompt": "a"}\n', lines("good") + b"not json\n", b"\xff\n"]
)
def test_refused_rows_leave_nothing(store, tmp_path, data):
    with pytest.raises(InvalidData):
        upload(store, data)
    assert kept(tmp_path) == []
    assert store.list(TENANT, PageRequest()).items == ()
    with pytest.raises(NotFound):
        store.uploads.get(TENANT, "up")


def test_a_damaged_file_of_another_format_leaves_nothing(store, tmp_path):
    folder = archive({".": b"", "cat/a.png": picture()})
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, folder)
    with pytest.raises(InvalidData, match="has no name of a file"):
        store.finish(TENANT, "up", len(folder), b"", NO_REQUEST, DataFormat.IMAGE_FOLDER)
    assert kept(tmp_path) == []


def test_the_same_rows_under_the_same_id_are_the_same_dataset(store, tmp_path):
    first = upload(store)
    assert upload(store) == first
    assert kept(tmp_path) == [first.path.name]


def test_other_rows_under_the_same_id_are_refused(store, tmp_path):
    first = upload(store)
    with pytest.raises(AlreadyExists, match=first.digest) as refusal:
        upload(store, lines("three"))
    assert refusal.value.metadata == {"resource": "tenants/acme/datasets/rows"}
    assert store.get(TENANT, "rows") == first
    assert kept(tmp_path) == [first.path.name]


def test_a_store_that_fails_for_a_moment_keeps_the_upload(store, tmp_path, used):
    impatient = DatasetStore(
        Database(f"sqlite:///{tmp_path / 'finetuned.db'}", busy_timeout_seconds=0.0),
        tmp_path,
        DataLimits(),
        (),
        lambda _connection, _tenant, _dataset: "",
        stored_limits(tmp_path),
    )
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS)
    with store._database.begin(), pytest.raises(Unavailable):
        impatient.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST)
    assert impatient.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST).rows == 2
    impatient._database.close()


def test_of_two_that_finish_one_upload_one_finds_it_gone(store):
    store.uploads.start(TENANT, "up", "rows")
    store.uploads.append(TENANT, "up", 0, ROWS)
    outcomes: list[object] = []

    def finish() -> None:
        try:
            outcomes.append(store.finish(TENANT, "up", len(ROWS), b"", NO_REQUEST))
        except NotFound as error:
            outcomes.append(error.metadata["resource"])

    threads = [threading.Thread(target=finish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == sorted(
        [store.get(TENANT, "rows"), "tenants/acme/uploads/up"], key=str
    )


# Repeated requests


def test_a_repeated_upload_gives_the_same_dataset_and_leaves_no_upload(store, tmp_path):
    request = RequestKey.of(TENANT, "r1", b"body")
    first = upload(store, request=request)
    assert upload(store, lines("else"), request=request) == first
    assert kept(tmp_path) == [first.path.name]


def test_another_upload_under_the_same_request_id_is_refused(store):
    upload(store, request=RequestKey.of(TENANT, "r1", b"body"))
    with pytest.raises(RequestIdReused):
        upload(store, dataset_id="other", request=RequestKey.of(TENANT, "r1", b"else"))


def test_a_request_that_found_its_dataset_there_is_remembered_too(store):
    upload(store)
    upload(store, request=RequestKey.of(TENANT, "r1", b"body"))
    with pytest.raises(RequestIdReused):
        upload(store, dataset_id="other", request=RequestKey.of(TENANT, "r1", b"else"))


def test_a_repeated_request_does_not_bring_back_what_was_deleted(store, tmp_path):
    request = RequestKey.of(TENANT, "r1", b"body")
    (tmp_path / "shared" / "rows.jsonl").write_bytes(ROWS)
    uri = (tmp_path / "shared" / "rows.jsonl").as_uri()
    store.import_file(TENANT, "rows", uri, request)
    store.delete(TENANT, "rows")
    with pytest.raises(NotFound, match="deleted since"):
        store.import_file(TENANT, "rows", uri, request)


def test_a_repeated_import_does_not_need_the_file_again(store, tmp_path):
    request = RequestKey.of(TENANT, "r1", b"body")
    file = tmp_path / "shared" / "rows.jsonl"
    file.write_bytes(ROWS)
    first = store.import_file(TENANT, "rows", file.as_uri(), request)
    file.unlink()
    assert store.import_file(TENANT, "rows", file.as_uri(), request) == first


# Imports


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "secret.jsonl").write_bytes(ROWS)
    (tmp_path / "shared").mkdir(exist_ok=True)
    (tmp_path / "shared-too").mkdir()
    (tmp_path / "shared-too" / "rows.jsonl").write_bytes(ROWS)
    (tmp_path / "shared" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "shared" / "up").symlink_to(tmp_path)
    (tmp_path / "shared" / "circle").symlink_to(tmp_path / "shared" / "circle")
    return tmp_path


def test_an_import_reads_under_a_root_and_remembers_where(store, tmp_path):
    deep = tmp_path / "shared" / "a b" / "rows é.jsonl"
    deep.parent.mkdir()
    deep.write_bytes(ROWS)
    for i, uri in enumerate((deep.as_uri(), deep.as_uri().replace("file://", "file://localhost"))):
        dataset = store.import_file(TENANT, f"rows-{i}", uri, NO_REQUEST)
        assert (dataset.rows, dataset.source) == (2, uri)


def test_a_root_may_itself_be_a_link(database, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "rows.jsonl").write_bytes(ROWS)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    root, limits = (tmp_path / "root",), stored_limits(tmp_path)
    store = DatasetStore(database, tmp_path, DataLimits(), root, lambda _c, _t, _d: "", limits)
    uri = (tmp_path / "root" / "rows.jsonl").as_uri()
    assert store.import_file(TENANT, "rows", uri, NO_REQUEST).rows == 2


@pytest.mark.parametrize(
    "place",
    [
        "file://{root}/secret.jsonl",
        "file://{root}/shared/../secret.jsonl",
        "file://{root}/shared/%2e%2e/secret.jsonl",
        "file://{root}/shared/..%2Fsecret.jsonl",
        "file://{root}/shared/link.jsonl",
        "file://{root}/shared/up/secret.jsonl",
        "file://{root}/shared-too/rows.jsonl",
        "file://{root}/shared/absent.jsonl",
        "file://{root}/shared",
        "file://{root}/shared/circle",
        "file://{root}/shared/a%00b",
        "file://{root}/shared/rows.jsonl?x=1",
        "file://{root}/shared/rows.jsonl#x",
        "file://{root}/shared/%ff",
        "file://{root}/shared/" + "x" * 5000,
        "file://elsewhere{root}/shared/rows.jsonl",
        "file://[{root}/shared/rows.jsonl",
        "file:shared/rows.jsonl",
        "{root}/shared/rows.jsonl",
        "http://localhost{root}/shared/rows.jsonl",
        "s3://bucket/rows.jsonl",
        "",
    ],
)
def test_everything_else_is_refused(store, outside, place):
    (outside / "shared" / "rows.jsonl").write_bytes(ROWS)
    with pytest.raises(InvalidField) as refusal:
        store.import_file(TENANT, "rows", place.format(root=outside), NO_REQUEST)
    assert [violation.field for violation in refusal.value.violations] == ["uri"]
    assert kept(outside) == []


def test_without_roots_nothing_can_be_imported(database, outside):
    store = DatasetStore(database, outside, DataLimits(), (), lambda _c, _t, _d: "", stored_limits(outside))
    with pytest.raises(InvalidField, match="none: set import_roots"):
        store.import_file(TENANT, "rows", (outside / "secret.jsonl").as_uri(), NO_REQUEST)


def test_refused_rows_of_an_import_leave_nothing_and_the_file_alone(store, tmp_path):
    file = tmp_path / "shared" / "rows.jsonl"
    file.write_bytes(b"not json\n")
    with pytest.raises(InvalidData):
        store.import_file(TENANT, "rows", file.as_uri(), NO_REQUEST)
    assert (kept(tmp_path), file.read_bytes()) == ([], b"not json\n")


# Deleting and sharing


def test_a_dataset_in_use_is_not_deleted(store, used):
    dataset = upload(store)
    used.add((TENANT, "rows"))
    with pytest.raises(ResourceInUse, match="jobs/train-1") as refusal:
        store.delete(TENANT, "rows")
    assert refusal.value.metadata == {"used_by": "tenants/acme/jobs/train-1"}
    assert store.get(TENANT, "rows") == dataset
    used.clear()
    store.delete(TENANT, "rows")
    for call in (store.get, store.delete):
        with pytest.raises(NotFound):
            call(TENANT, "rows")


def test_deleting_takes_one_connection_at_a_time(database, tmp_path):
    """It took a second one for the question who uses the dataset: many at once waited for each other's."""
    limits = stored_limits(tmp_path)
    store = DatasetStore(database, tmp_path, DataLimits(), (), JobStore.uses_dataset, limits)
    upload(store)
    taken: list[int] = []
    event.listen(database._engine, "checkout", lambda *_: taken.append(database._engine.pool.checkedout()))
    store.delete(TENANT, "rows")
    assert set(taken) == {1}


def test_rows_are_kept_until_the_last_dataset_of_any_tenant_is_gone(store, tmp_path):
    first = upload(store)
    copy = upload(store, dataset_id="copy")
    foreign = upload(store, tenant="other")
    assert {first.path, copy.path, foreign.path} == {first.path}
    store.delete(TENANT, "rows")
    store.delete("other", "rows")
    assert kept(tmp_path) == [first.path.name]
    assert store.get(TENANT, "copy").path.exists()
    store.delete(TENANT, "copy")
    assert kept(tmp_path) == []


def test_deleting_and_storing_the_same_rows_never_loses_them(store, tmp_path):
    def churn(tenant: str) -> None:
        for _ in range(5):
            upload(store, tenant=tenant)
            store.delete(tenant, "rows")

    threads = [threading.Thread(target=churn, args=(tenant,)) for tenant in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(tmp_path) == []
    assert upload(store).path.exists()


def test_a_dataset_of_another_tenant_is_not_found(store):
    upload(store)
    with pytest.raises(NotFound):
        store.get("other", "rows")
    with pytest.raises(NotFound):
        store.delete("other", "rows")
    assert store.get(TENANT, "rows").rows == 2


def test_lists_come_in_order_of_name_in_pages_and_by_kind(store):
    for dataset_id in ("c", "a", "b"):
        upload(store, dataset_id=dataset_id)
    upload(store, b'{"text": "plain"}\n', dataset_id="d")
    upload(store, tenant="other")
    first = store.list(TENANT, PageRequest.parse(3, ""))
    rest = store.list(TENANT, PageRequest.parse(3, first.next_token))
    assert [[item.id for item in page.items] for page in (first, rest)] == [["a", "b", "c"], ["d"]]
    assert [item.id for item in store.list(TENANT, PageRequest(), RowKind.TEXT).items] == ["d"]


def test_what_a_crash_left_of_a_validation_is_swept_when_it_is_old(store, database, tmp_path):
    for name, age_seconds in (("old", 2 * 24 * 3600), ("young", 60)):
        leftover = tmp_path / "datasets" / f".validating-{name}"
        leftover.mkdir()
        (leftover / "rows.jsonl").write_bytes(ROWS)
        then = time.time() - age_seconds
        os.utime(leftover, (then, then))
    DatasetStore(database, tmp_path, DataLimits(), (), lambda _c, _t, _d: "", stored_limits(tmp_path))
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [".validating-young"]
