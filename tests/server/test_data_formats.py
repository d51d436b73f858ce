"""Datasets of every format and kind, through a real server: what is stored, reported and refused."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from finetuned import Client, LabelCount, Objective, RowKind
from finetuned.errors import InvalidData, InvalidField, NotFound
from finetuned.values.datasets import DatasetFormat
from PIL import Image
from pyarrow import parquet
from tiny_server import TinyServer

IDS = itertools.count()

ROWS = {
    RowKind.LABELLED_TEXT: {"text": "a", "label": "x"},
    RowKind.MULTI_LABEL_TEXT: {"text": "a", "labels": ["x"]},
    RowKind.SCORED_TEXT: {"text": "a", "score": 0.5},
    RowKind.LABELLED_TOKENS: {"tokens": ["a"], "tags": ["B-X"]},
    RowKind.PAIR: {"query": "a", "positive": "b"},
    RowKind.SCORED_PAIR: {"sentence1": "a", "sentence2": "b", "score": 1},
    RowKind.PREFERENCE: {"prompt": "a", "chosen": "b", "rejected": "c"},
}


def picture(colour: int = 0, *, side: int = 4) -> bytes:
    written = io.BytesIO()
    Image.new("L", (side, side), colour).save(written, "PNG")
    return written.getvalue()


def archive(**entries: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        for name, content in entries.items():
            made.writestr(name.replace("__", "/"), content)
    return written.getvalue()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / f"d{next(IDS)}-{name}"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("kind", ROWS)
def test_each_kind_is_stored_and_refused_by_a_task_that_cannot_use_it(client, make, kind):
    dataset = client.datasets.upload(make("rows.jsonl", json.dumps(ROWS[kind]).encode()))
    assert (dataset.row_kind, dataset.rows) == (kind, 1)
    assert client.datasets.get(dataset.name) == dataset
    with pytest.raises(InvalidField) as refused:
        client.train(dataset=dataset.name, adapter="mine", objective=Objective.SFT)
    assert refused.value.violations[0].field == "spec.dataset"
    assert (
        f"holds {kind.name} rows; the task text-generation with OBJECTIVE_SFT trains on PROMPT_COMPLETION"
        in refused.value.message
    )


def test_a_table_is_read_by_its_columns_and_reported(client, make):
    text = b"sentence,mark,id\ngood,pos,1\nbad,neg,2\nGood ,neg,3\n"
    columns = {"sentence": "text", "mark": "label"}
    dataset = client.datasets.upload(make("marks.csv.gz", gzip.compress(text)), columns=columns)
    report = client.datasets.get(dataset.name).report
    assert report.labels == (LabelCount("neg", 2), LabelCount("pos", 1))
    assert (report.duplicate_rows, report.conflicting_rows, report.characters.longest) == (1, 1, 5)
    assert report.warnings == ("1 rows say something else about what another row is about",)
    table = io.BytesIO()
    marks = {"sentence": ["good", "bad", "Good "], "mark": ["pos", "neg", "neg"], "id": [1, 2, 3]}
    parquet.write_table(pa.table(marks), table)
    same = client.datasets.upload(make("marks.parquet", table.getvalue()), columns=columns)
    assert (same.digest, same.report) == (dataset.digest, report)
    assert {item.report for item in client.datasets.list()} == {None}


def test_an_image_folder_and_sentences(client, make):
    images = client.datasets.upload(make("pets.zip", archive(cat__a=picture(), dog__b=picture(9))))
    assert (images.row_kind, images.rows) == (RowKind.LABELLED_IMAGE, 2)
    tagged = client.datasets.upload(make("tokens.conll", b"Ada B-PER\nran O\n\nsun O\n"))
    assert (tagged.row_kind, tagged.rows) == (RowKind.LABELLED_TOKENS, 2)


BOMB = gzip.compress(b"x" * 3_000_000)


@pytest.mark.parametrize(
    ("name", "content", "field", "said"),
    [
        ("a.csv", b"text,label\na,x\nb,\n", "line 3", "label is empty"),
        ("a.conll", b"a O\nb I-X\n", "line 1", "no entity 'X' open before it"),
        ("a.jsonl", b'{"text":"a","score":1e999}', "line 1", "score is inf; expected a finite number"),
        ("a.jsonl", b'{"text":"a","score":NaN}', "line 1", "holds NaN, which is not JSON"),
        ("a.zip", archive(cat__a=picture(side=400)[:-60]), "entry 'cat/a'", "image does not decode"),
        ("a.zip", archive(cat__a=b"text"), "entry 'cat/a'", "image is of no known format"),
        (
            "a.zip",
            archive(**{"..__cat__a": picture()}),
            None,
            "the entry '../cat/a' of the zip points out of the zip",
        ),
        ("a.zip", archive(a=picture()), None, "the entry 'a' of the zip lies in no folder"),
        ("a.jsonl.gz", BOMB, None, "the gzip file unpacks to more than 2000000 bytes"),
        ("a.parquet", b"PAR1 no more", None, "not readable as Parquet"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_stored(client, make, name, content, field, said):
    path = make(name, content)
    with pytest.raises(InvalidData) as refused:
        client.datasets.upload(path, "refused")
    assert [item.field for item in refused.value.violations] == ([field] if field else [])
    assert said in refused.value.message
    with pytest.raises(NotFound):
        client.datasets.get("refused")


def test_a_mapping_that_names_no_field_is_refused(client, make):
    with pytest.raises(InvalidField, match="columns: maps 'a' to 'txt'; allowed: prompt"):
        client.datasets.upload(make("a.csv", b"a\n"), columns={"a": "txt"})
    with pytest.raises(InvalidField, match="CONLL has no names of columns"):
        client.datasets.upload(make("a", b"a O\n"), file_format=DatasetFormat.CONLL, columns={"a": "text"})


def test_a_file_of_an_object_store_is_imported_under_an_import_url_only(
    client: Client, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    del server
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    try:
        endpoint = "http://{}:{}".format(*store.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="data")
        for key in ("shared/rows.csv", "secret/rows.csv"):
            bucket.put_object(Key=key, Body=b"text,label\na,x\n")
        dataset = client.datasets.import_uri("s3://data/shared/rows.csv", "from-s3")
        assert (dataset.row_kind, dataset.source) == (RowKind.LABELLED_TEXT, "s3://data/shared/rows.csv")
        for uri in (
            "s3://data/secret/rows.csv",
            "s3://data/shared/../secret/rows.csv",
            "s3://data/shared-too/rows.csv",
            "s3://data/shared/rows.csv::file:///etc/passwd",
            "s3://data/shared/rows.csv?versionId=1",
        ):
            with pytest.raises(InvalidField, match=r"is not under an import URL; allowed: s3://data/shared/"):
                client.datasets.import_uri(uri, "refused")
        with pytest.raises(InvalidField, match="is not a file that the server may read"):
            client.datasets.import_uri("s3://data/shared/none.csv", "refused")
    finally:
        store.stop()


def test_the_report_of_a_job_is_told_before_it_starts(client, make):
    rows = [
        {"prompt": f"say {n}", "completion": "one two three four five six"[: n % 20 + 3]} for n in range(20)
    ]
    rows += [{"prompt": "SAY  1", "completion": "One "}]
    train = client.datasets.upload(make("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()))
    held = client.datasets.upload(make("held.jsonl", json.dumps(rows[1] | {"prompt": "Say 1"}).encode()))
    job = client.train(dataset=train.name, eval_dataset=held.name, adapter="mine", validate_only=True)
    report = job.data_report
    assert (report.train_rows, report.eval_rows) == (21, 1)
    assert (report.leaked_rows, report.similar_leaked_rows) == (0, 1)
    assert report.row_tokens.longest == report.longest_row_tokens
    assert report.row_tokens.median <= report.row_tokens.p90 <= report.row_tokens.p99
    assert report.warnings[0].startswith("1 of 1 held-out rows are also trained on, as they are or nearly")
