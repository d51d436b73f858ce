"""`client.datasets` of both clients against the fake fake_server."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from both_clients import RETRIES, open_client, write_rows
from finetuned import LabelCount, LengthSummary, RowKind, UploadProgress
from finetuned._calls.upload import CHUNK_BYTES
from finetuned.errors import (
    AlreadyExists,
    InvalidData,
    InvalidField,
    NotFound,
    ResourceInUse,
    Unavailable,
    Unimplemented,
)
from finetuned.testing import FakeServer
from finetuned.values.datasets import DatasetFormat


def test_upload_stores_what_the_file_holds(client: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "My Rows.jsonl")
    told: list[UploadProgress] = []
    dataset = client.datasets.upload(path, progress=told.append)
    assert dataset.name == "tenants/a/datasets/my-rows"
    assert dataset.row_kind is RowKind.PROMPT_COMPLETION
    assert dataset.rows == 3
    assert dataset.source == "upload"
    canonical = "".join(
        json.dumps(json.loads(line), sort_keys=True) + "\n" for line in path.read_text().splitlines()
    )
    assert dataset.digest == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    assert told == [UploadProgress(path.stat().st_size, path.stat().st_size)]
    assert client.datasets.get("my-rows") == dataset
    assert client.datasets.get("tenants/a/datasets/my-rows") == dataset


def test_upload_goes_on_where_the_stream_broke(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", count=40, width=CHUNK_BYTES // 10)
    size = path.stat().st_size
    assert size > 3 * CHUNK_BYTES
    fake_server.fail("UploadDataset", after_messages=3)  # start and two chunks pass
    dataset = client.datasets.upload(path)
    assert dataset.rows == 40
    assert fake_server.calls("UploadDataset") == 2
    assert fake_server.calls("GetUpload") == 1
    received = fake_server.requests("UploadDataset")
    assert received[1][0].WhichOneof("step") == "start"
    assert received[1][1].chunk.offset == 2 * CHUNK_BYTES


def test_upload_that_keeps_breaking_keeps_going_while_it_gets_further(
    client: Any, fake_server: FakeServer, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", count=80, width=CHUNK_BYTES // 10)
    chunks = -(-path.stat().st_size // CHUNK_BYTES)
    assert chunks > RETRIES.attempts
    fake_server.fail("UploadDataset", after_messages=2, times=chunks)
    assert client.datasets.upload(path).rows == 80


def test_upload_gives_up_when_nothing_gets_through(
    client: Any, fake_server: FakeServer, tmp_path: Path
) -> None:
    fake_server.fail("UploadDataset", times=99)
    with pytest.raises(Unavailable):
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
    assert fake_server.calls("UploadDataset") == RETRIES.attempts


def test_upload_whose_answer_was_lost_gives_the_same_dataset(
    client: Any, fake_server: FakeServer, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    fake_server.lose_answer("UploadDataset")
    dataset = client.datasets.upload(path)
    assert [item.digest for item in client.datasets.list()] == [dataset.digest]
    assert fake_server.calls("UploadDataset") == 2


def test_upload_names_the_lines_at_fault_and_stores_nothing(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"promt": "a", "completion": "b"}\nnot json\n')
    with pytest.raises(InvalidData) as refused:
        client.datasets.upload(path)
    assert [violation.field for violation in refused.value.violations] == ["line 2", "line 3"]
    assert refused.value.metadata == {"invalid_rows": "2"}
    assert list(client.datasets.list()) == []


def test_upload_of_a_taken_name(client: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    client.datasets.upload(path)
    with pytest.raises(AlreadyExists) as refused:
        client.datasets.upload(path)
    assert refused.value.metadata == {"resource": "tenants/a/datasets/rows"}


def test_the_format_comes_from_the_name_or_is_told(client: Any, tmp_path: Path) -> None:
    (tmp_path / "marks.csv.gz").write_bytes(
        gzip.compress(b"sentence,mark,id\ngood,pos,1\nbad,neg,2\ngood,pos,3\n")
    )
    columns = {"sentence": "text", "mark": "label"}
    dataset = client.datasets.upload(tmp_path / "marks.csv.gz", columns=columns)
    assert (dataset.name, dataset.row_kind) == ("tenants/a/datasets/marks", RowKind.LABELLED_TEXT)
    assert dataset.report is not None
    assert dataset.report.labels == (LabelCount("pos", 2), LabelCount("neg", 1))
    assert (dataset.report.imbalance_ratio, dataset.report.duplicate_rows) == (2.0, 1)
    assert dataset.report.characters == LengthSummary(median=7, p90=7, p95=7, p99=7, longest=7, mean=20 / 3)
    uri = (tmp_path / "marks.csv.gz").as_uri()
    assert client.datasets.import_uri(uri, "again", columns=columns).digest == dataset.digest
    assert client.datasets.get("again").report == dataset.report
    assert [item.report for item in client.datasets.list()] == [None, None]
    (tmp_path / "tokens.txt").write_text("Ada B-PER\nran O\n\nsun O\n")
    tagged = client.datasets.upload(tmp_path / "tokens.txt", file_format=DatasetFormat.CONLL)
    assert (tagged.row_kind, tagged.rows) == (RowKind.LABELLED_TOKENS, 2)


def test_a_zip_of_folders(client: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("cat/a.png", b"x")
        archive.writestr("dog/b.png", b"y")
    dataset = client.datasets.upload(tmp_path / "pets.zip")
    assert (dataset.row_kind, dataset.rows) == (RowKind.LABELLED_IMAGE, 2)


def test_the_fake_server_reads_no_parquet(client: Any, tmp_path: Path) -> None:
    with pytest.raises(Unimplemented) as refused:
        client.datasets.upload(write_rows(tmp_path / "rows.parquet"))
    assert refused.value.metadata == {"feature": "DATASET_FORMAT_PARQUET"}


def test_upload_of_a_missing_file(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.datasets.upload(tmp_path / "none.jsonl")
    assert fake_server.calls("UploadDataset") == 0


def test_import_uri(client: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    dataset = client.datasets.import_uri(path.as_uri(), "imported")
    assert dataset.name == "tenants/a/datasets/imported"
    assert dataset.source == path.as_uri()
    with pytest.raises(InvalidField):
        client.datasets.import_uri("https://example.com/rows.jsonl", "other")


def test_list_reads_every_page_and_filters(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    names = [client.datasets.upload(path, f"set-{number}").name for number in range(5)]
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    text = client.datasets.upload(tmp_path / "text.jsonl")
    assert [item.name for item in client.datasets.list(page_size=2)] == [*names, text.name]
    assert fake_server.calls("ListDatasets") == 3
    assert [item.name for item in client.datasets.list(row_kind=RowKind.TEXT)] == [text.name]


def test_tenants_do_not_see_each_other(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
    with open_client("sync", fake_server.endpoint, tenant="b") as other:
        assert list(other.datasets.list()) == []
        with pytest.raises(NotFound):
            other.datasets.get("rows")


def test_delete(client: Any, tmp_path: Path) -> None:
    client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
    job = client.train(dataset="rows", adapter="mine")
    with pytest.raises(ResourceInUse) as refused:
        client.datasets.delete("rows")
    assert refused.value.metadata == {"used_by": job.name}
    client.jobs.cancel(job.name)
    assert client.datasets.delete("rows") is None
    with pytest.raises(NotFound) as gone:
        client.datasets.get("rows")
    assert gone.value.metadata == {"resource": "tenants/a/datasets/rows"}
