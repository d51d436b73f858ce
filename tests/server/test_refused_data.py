"""Datasets and uploads that are refused by a real server: the line is named, nothing is stored."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceStub
from server.refusals import Refusal, refusal_of
from tiny_server import TinyServer

GOOD = b'{"prompt": "a", "completion": "b"}\n'
IDS = itertools.count()
MIB = 1024 * 1024


def upload_steps(
    data: bytes, dataset_id: str, *, chunk_bytes: int = MIB
) -> Iterator[pb.UploadDatasetRequest]:
    start = pb.UploadStart(parent="tenants/default", dataset_id=dataset_id, upload_id=f"up-{dataset_id}")
    yield pb.UploadDatasetRequest(start=start)
    for offset in range(0, len(data), chunk_bytes):
        chunk = pb.UploadChunk(offset=offset, data=data[offset : offset + chunk_bytes])
        yield pb.UploadDatasetRequest(chunk=chunk)
    yield pb.UploadDatasetRequest(finish=pb.UploadFinish(size_bytes=len(data)))


def refused(channel: grpc.Channel, data: bytes) -> Refusal:
    """Upload, be refused, and find that nothing was stored."""
    stub, dataset_id = DatasetServiceStub(channel), f"bad-{next(IDS)}"
    found = refusal_of(lambda: stub.UploadDataset(upload_steps(data, dataset_id)))
    name = f"tenants/default/datasets/{dataset_id}"
    assert refusal_of(lambda: stub.GetDataset(pb.GetDatasetRequest(name=name))).code == "NOT_FOUND"
    return found


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"prompt": "a", "completoin": "b"}\n', "completoin"),
        (b'{"prompt": "a", "completion": "b", "extra": 1}\n', "extra"),
        (b'{"prompt": "a", "completion": ""}\n', "completion"),
        (b'{"messages": [{"role": "user", "content": "a"}]}\n', "assistant"),
        (b'{"text": ""}\n', "text"),
        (b'{"prompt": "\xff", "completion": "b"}\n', "UTF-8"),
        (b"not json\n", "JSON"),
        (b'["a"]\n', "object"),
    ],
)
def test_bad_row_is_named_by_its_line(channel: grpc.Channel, row: bytes, said: str) -> None:
    kind = GOOD if b"prompt" in row or not row.startswith(b"{") else b""
    lead = kind * 2
    found = refused(channel, lead + row)
    line = lead.count(b"\n") + 1
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_DATA")
    assert f"line {line}" in found.fields
    assert said.lower() in found.message.lower()


def test_empty_dataset(channel: grpc.Channel) -> None:
    found = refused(channel, b"")
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_DATA")


def test_line_of_20_megabytes(channel: grpc.Channel) -> None:
    row = json.dumps({"prompt": "a", "completion": "b" * 20_000_000}).encode() + b"\n"
    found = refused(channel, GOOD + row)
    assert (found.code, found.reason, found.fields) == ("INVALID_ARGUMENT", "INVALID_DATA", ("line 2",))


def test_at_most_20_lines_are_listed_and_all_are_counted(channel: grpc.Channel) -> None:
    found = refused(channel, b'{"prompt": "a"}\n' * 30)
    assert len(found.fields) == 20
    assert found.metadata["invalid_rows"] == "30"


def steps(*items: pb.UploadStart | pb.UploadChunk | pb.UploadFinish) -> Iterator[pb.UploadDatasetRequest]:
    for item in items:
        match item:
            case pb.UploadStart():
                yield pb.UploadDatasetRequest(start=item)
            case pb.UploadChunk():
                yield pb.UploadDatasetRequest(chunk=item)
            case pb.UploadFinish():
                yield pb.UploadDatasetRequest(finish=item)


def start(upload_id: str) -> pb.UploadStart:
    return pb.UploadStart(parent="tenants/default", dataset_id=upload_id, upload_id=upload_id)


@pytest.mark.parametrize(("offset", "upload_id"), [(0, "twice"), (5, "overlap"), (1000, "gap")])
def test_chunk_at_a_wrong_offset_then_go_on(channel: grpc.Channel, offset: int, upload_id: str) -> None:
    stub = DatasetServiceStub(channel)
    first = pb.UploadChunk(offset=0, data=GOOD)
    wrong = pb.UploadChunk(offset=offset, data=GOOD)
    found = refusal_of(lambda: stub.UploadDataset(steps(start(upload_id), first, wrong)))
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_UPLOAD")
    assert found.metadata["committed_bytes"] == str(len(GOOD))
    name = f"tenants/default/uploads/{upload_id}"
    assert stub.GetUpload(pb.GetUploadRequest(name=name)).committed_bytes == len(GOOD)
    rest = pb.UploadChunk(offset=len(GOOD), data=GOOD.replace(b"b", b"c"))
    finish = pb.UploadFinish(size_bytes=2 * len(GOOD))
    assert stub.UploadDataset(steps(start(upload_id), rest, finish)).dataset.rows == 2


def test_stream_without_start_or_finish(channel: grpc.Channel) -> None:
    stub = DatasetServiceStub(channel)
    chunk = pb.UploadChunk(offset=0, data=GOOD)
    assert refusal_of(lambda: stub.UploadDataset(steps(chunk))).reason == "INVALID_UPLOAD"
    assert refusal_of(lambda: stub.UploadDataset(steps(start("open"), chunk))).reason == "INVALID_UPLOAD"


def test_import_only_under_the_import_roots(
    channel: grpc.Channel, server: TinyServer, tmp_path: Path
) -> None:
    stub = DatasetServiceStub(channel)
    outside = tmp_path / "rows.jsonl"
    outside.write_bytes(GOOD)
    request = pb.ImportDatasetRequest(parent="tenants/default", dataset_id="outside", uri=outside.as_uri())
    found = refusal_of(lambda: stub.ImportDataset(request))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("uri",))
    inside = server.data_directory.parent / "imports"
    inside.mkdir(exist_ok=True)
    (inside / "rows.jsonl").write_bytes(GOOD)
    request = pb.ImportDatasetRequest(
        parent="tenants/default", dataset_id="inside", uri=(inside / "rows.jsonl").as_uri()
    )
    assert stub.ImportDataset(request).dataset.rows == 1


def test_a_format_that_nobody_knows_is_refused(channel: grpc.Channel) -> None:
    opened = start("parquet")
    opened.format = 77  # pyright: ignore[reportAttributeAccessIssue]  # what a newer client might send
    found = refusal_of(lambda: DatasetServiceStub(channel).UploadDataset(steps(opened)))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("format",))
