"""Calls of the DatasetService beside and after each other: what is long keeps no short call from a thread, and what
is repeated has the same answer.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned_service.datasets import store as store_module
from finetuned_service.datasets import upload_file
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.datasets.validation import DataLimits
from finetuned_service.errors import InvalidUpload, NotFound, QuotaExceeded, RequestIdReused, Unavailable
from finetuned_service.rpc.datasets import MAX_CHUNK_BYTES, DatasetServicer
from tiny_limits import stored_limits

ROWS = b'{"prompt": "say it", "completion": "done"}\n'


class Slow:
    """Validation that waits to be let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()
        self._validate = store_module.validate

    def __call__(self, *arguments, **named):
        self.begun.release()
        assert self.let_go.wait(60)
        return self._validate(*arguments, **named)


@pytest.fixture
def slow(monkeypatch):
    slow = Slow()
    monkeypatch.setattr(store_module, "validate", slow)
    yield slow
    slow.let_go.set()


@pytest.fixture
def store(tmp_path, database):
    return DatasetStore(
        database, tmp_path, DataLimits(), (tmp_path,), lambda _c, _t, _d: "", stored_limits(tmp_path)
    )


@pytest.fixture
async def calls(store):
    """The servicer on a loop with a single thread for short calls."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    return DatasetServicer(store)


async def stream(*messages: pb.UploadDatasetRequest) -> AsyncIterator[pb.UploadDatasetRequest]:
    for message in messages:
        yield message


def start(tenant: str = "acme", upload_id: str = "up", **fields) -> pb.UploadDatasetRequest:
    begun = pb.UploadStart(parent=f"tenants/{tenant}", dataset_id="rows", upload_id=upload_id, **fields)
    return pb.UploadDatasetRequest(start=begun)


def chunk(data: bytes, offset: int = 0) -> pb.UploadDatasetRequest:
    return pb.UploadDatasetRequest(chunk=pb.UploadChunk(offset=offset, data=data))


def finish(size_bytes: int = len(ROWS)) -> pb.UploadDatasetRequest:
    return pb.UploadDatasetRequest(finish=pb.UploadFinish(size_bytes=size_bytes))


def uploading(calls, *messages) -> asyncio.Task[pb.UploadDatasetResponse]:
    return asyncio.create_task(calls.UploadDataset(stream(*messages), None))


async def rows_of(calls, tenant: str) -> int:
    async with asyncio.timeout(30):
        got = await calls.GetDataset(pb.GetDatasetRequest(name=f"tenants/{tenant}/datasets/rows"), None)
    return got.dataset.rows


async def acquired(counted: threading.Semaphore) -> None:
    """Without one of the loop's own threads."""
    assert await asyncio.get_running_loop().run_in_executor(
        ThreadPoolExecutor(1), lambda: counted.acquire(timeout=30)
    )


async def has_begun(slow: Slow) -> None:
    await acquired(slow.begun)


async def test_streams_that_wait_for_an_upload_being_finished_hold_no_thread(calls, slow, store, monkeypatch):
    finishing = uploading(calls, start(), chunk(ROWS), finish())
    await has_begun(slow)
    opened, begin = threading.Semaphore(0), store.uploads.start

    def opening(*arguments):
        begin(*arguments)
        opened.release()

    monkeypatch.setattr(store.uploads, "start", opening)
    late = [uploading(calls, start(), chunk(b"x", len(ROWS))) for _ in range(8)]
    for _ in late:  # of an upload that is finished a later one would be another
        await acquired(opened)
    with pytest.raises(NotFound):
        await rows_of(calls, "other")
    slow.let_go.set()
    assert (await finishing).dataset.rows == 1
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotFound] * 8  # it is finished
    assert await rows_of(calls, "acme") == 1


async def test_a_client_that_reconnects_gets_what_its_old_stream_makes(calls, slow):
    request = start(request_id="r1")
    lost = uploading(calls, request, chunk(ROWS), finish())
    await has_begun(slow)
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    again = uploading(calls, request, finish())
    slow.let_go.set()
    assert (await again).dataset.rows == 1
    assert slow.begun.acquire(blocking=False) is False  # validated once


async def test_a_repeated_call_leaves_another_upload_of_the_same_id_alone(calls, slow):
    slow.let_go.set()
    first = (start(request_id="r1"), chunk(ROWS), finish())
    made = await uploading(calls, *first)
    begun = pb.UploadStart(parent="tenants/acme", dataset_id="others", upload_id="up", request_id="r2")
    with pytest.raises(InvalidUpload, match="without finish"):
        await uploading(calls, pb.UploadDatasetRequest(start=begun), chunk(ROWS))
    assert await uploading(calls, *first) == made
    upload = await calls.GetUpload(pb.GetUploadRequest(name="tenants/acme/uploads/up"), None)
    assert (upload.committed_bytes, upload.dataset) == (len(ROWS), "tenants/acme/datasets/others")


async def test_what_a_call_is_refused_with_is_logged_by_nobody(calls, slow):
    """It may quote somebody's rows; asyncio logs the errors of tasks that nobody asks for theirs."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    bad = b'{"text": 7}\n'
    gone = uploading(calls, start(), chunk(bad), finish(len(bad)))
    await has_begun(slow)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slow.let_go.set()
    await calls._uploads.run(
        "acme/up", lambda: asyncio.sleep(0)
    )  # its turn comes when the refused call has ended
    with pytest.raises(NotFound):
        await calls.GetUpload(pb.GetUploadRequest(name="tenants/acme/uploads/up"), None)
    del gone
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def test_many_long_calls_of_a_tenant_leave_threads_to_others(calls, slow, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    uri = (tmp_path / "rows.jsonl").as_uri()
    requests = [
        pb.ImportDatasetRequest(parent="tenants/acme", dataset_id=f"rows-{number}", uri=uri)
        for number in range(8)
    ]
    imports = [asyncio.create_task(calls.ImportDataset(request, None)) for request in requests]
    for _ in range(2):
        await has_begun(slow)
    for gone in imports[:2]:  # a call that is given up keeps its place until its thread is free
        gone.cancel()
    others = uploading(calls, start("other"), chunk(ROWS), finish())
    await has_begun(slow)
    assert slow.begun.acquire(blocking=False) is False
    with pytest.raises(NotFound):
        await rows_of(calls, "other")
    slow.let_go.set()
    assert (await others).dataset.rows == 1
    made = await asyncio.gather(*imports[2:])
    assert [response.dataset.rows for response in made] == [1] * 6


@pytest.mark.parametrize("limits", [{"datasets": 1}, {"storage_bytes": len(ROWS)}])
async def test_at_a_limit_a_repeated_upload_gives_what_it_made(database, tmp_path, limits):
    met = stored_limits(tmp_path, **limits)
    store = DatasetStore(database, tmp_path, DataLimits(), (), lambda _c, _t, _d: "", met)
    calls = DatasetServicer(store)
    messages = (start(request_id="r1"), chunk(ROWS), finish())
    made = await uploading(calls, *messages)
    assert await uploading(calls, *messages) == made
    with pytest.raises(RequestIdReused):
        await uploading(calls, start(request_id="r1"), chunk(b"x" * 10), finish(10))
    with pytest.raises(InvalidUpload, match="a chunk has"):
        await uploading(calls, start(request_id="r1"), chunk(bytes(MAX_CHUNK_BYTES + 1)))
    with pytest.raises(NotFound):  # nothing of them lies there for days
        await calls.GetUpload(pb.GetUploadRequest(name="tenants/acme/uploads/up"), None)
    with pytest.raises(QuotaExceeded):
        await uploading(calls, start(request_id="r2"), chunk(ROWS), finish())
    await calls.DeleteDataset(pb.DeleteDatasetRequest(name="tenants/acme/datasets/rows"), None)
    with pytest.raises(NotFound, match="deleted since"):
        await uploading(calls, *messages)


def test_a_file_that_another_process_holds_is_not_waited_for_for_ever(store, monkeypatch):
    monkeypatch.setattr(upload_file, "_PATIENCE_SECONDS", 0.05)
    store.uploads.start("acme", "up", "rows")
    with store.uploads.file("acme", "up").held(), pytest.raises(Unavailable) as refusal:
        store.uploads.append("acme", "up", 0, ROWS)
    assert refusal.value.retry_after_seconds == 0.05
    assert store.uploads.append("acme", "up", 0, ROWS) == len(ROWS)
