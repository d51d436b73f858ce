"""Expiry through a real server: told beforehand, and done while requests run."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from finetuned import Client, RawText
from finetuned.errors import NotFound
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceStub
from tiny_models import save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running

PROMPT = RawText("what is kept?")


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """A server that keeps things for thirty days."""
    directory = tmp_path_factory.mktemp("keeping")
    make_data_directory(directory)
    with running(
        directory / "data",
        job_retention_days=30.0,
        job_event_retention_days=30.0,
        version_retention_days=30.0,
        upload_retention_days=2.0,
    ) as found:
        found.until_swept()
        yield found


@pytest.fixture
def client(keeping: TinyServer) -> Iterator[Client]:
    with Client(keeping.endpoint) as found:
        yield found


def in_the_past(server: TinyServer, statement: str) -> None:
    """Change the store behind the server's back, with `:then` a year ago."""
    with sqlite3.connect(server.data_directory / "finetuned.db") as raw:
        raw.execute(statement, {"then": time.time() - 365 * 86400})
    raw.close()


def imported(client: Client, server: TinyServer, directory: Path, name: str, seed: int) -> str:
    made = save_tiny_adapter(directory, server.base_directory, seed=seed, rank=4).directory
    return client.adapters.import_directory(
        made, name, expected_base_digest=client.server_info().base.digest
    ).name


def test_a_version_expires_but_not_while_an_alias_names_it_or_it_is_pinned(
    client: Client, keeping: TinyServer, tmp_path: Path
) -> None:
    first, second, third = (
        imported(client, keeping, tmp_path / str(seed), "kept", seed) for seed in (1, 2, 3)
    )
    assert client.adapters.version(first).expire_time is None
    told = client.adapters.version(second)
    assert told.create_time is not None
    assert told.expire_time is not None
    assert abs(told.expire_time - told.create_time - timedelta(days=30)) < timedelta(seconds=5)
    client.adapters.load(second, pin=True)
    client.generate(PROMPT, adapter=third, max_tokens=2)
    in_the_past(keeping, "UPDATE adapter_versions SET unnamed_since = :then WHERE unnamed_since IS NOT NULL")
    sweep_with_fresh_facts(keeping)
    assert [version.name for version in client.adapters.versions("kept")] == [second, first]
    with pytest.raises(NotFound):
        client.generate(PROMPT, adapter=third, max_tokens=2)
    client.adapters.unload(second)
    sweep_with_fresh_facts(keeping)
    assert [version.name for version in client.adapters.versions("kept")] == [first]
    assert client.generate(PROMPT, adapter="kept", max_tokens=2).served_by.adapter_version == first
    assert len(list((keeping.data_directory / "adapters").iterdir())) == 1


def sweep_with_fresh_facts(server: TinyServer) -> None:
    async def look() -> None:
        server.server._snapshot = await server.server.engine.inspect()

    asyncio.run_coroutine_threadsafe(look(), server.loop).result(30)
    server.server._sweeper.sweep()


def test_a_finished_job_tells_when_it_expires_and_goes(
    client: Client, keeping: TinyServer, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    client.datasets.upload(rows, "rows")
    job = client.train(dataset="rows", adapter="never")
    assert client.jobs.get(job.name).expire_time is None
    client.jobs.cancel(job.name)
    ended = client.jobs.wait(job.name)
    assert ended.end_time is not None
    ended = client.jobs.get(job.name)
    assert ended.expire_time == ended.end_time + timedelta(days=30)
    assert ended.events_expire_time == ended.expire_time
    in_the_past(keeping, "UPDATE jobs SET end_time = :then")
    sweep_with_fresh_facts(keeping)
    with pytest.raises(NotFound):
        client.jobs.get(job.name)
    assert not (keeping.data_directory / "jobs" / job.name.rsplit("/", 1)[-1]).exists()


def test_an_upload_tells_when_it_expires_and_goes(keeping: TinyServer) -> None:
    def unfinished() -> Iterator[pb.UploadDatasetRequest]:
        start = pb.UploadStart(parent="tenants/default", upload_id="up", dataset_id="later")
        yield pb.UploadDatasetRequest(start=start)
        yield pb.UploadDatasetRequest(chunk=pb.UploadChunk(offset=0, data=b'{"prompt": '))

    asked = pb.GetUploadRequest(name="tenants/default/uploads/up")
    with grpc.insecure_channel(keeping.endpoint) as channel:
        stub = DatasetServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.UploadDataset(unfinished())
        upload = stub.GetUpload(asked)
        assert upload.committed_bytes == 11
        assert upload.expire_time.ToSeconds() == pytest.approx(time.time() + 2 * 86400, abs=60)
        in_the_past(keeping, "UPDATE uploads SET create_time = :then")
        sweep_with_fresh_facts(keeping)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.GetUpload(asked)
    assert not (keeping.data_directory / "uploads" / "default" / "up").exists()
