"""Refusals that must arrive whole, borders between tenants, and what is left when something goes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from finetuned import Client
from finetuned.errors import RequestIdReused
from finetuned.v1 import (
    adapter_service_pb2,
    common_pb2,
    dataset_service_pb2,
    job_pb2,
    serving_service_pb2,
    tuning_service_pb2,
)
from finetuned.v1.adapter_service_pb2_grpc import AdapterServiceStub
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuned.v1.serving_service_pb2_grpc import ServingServiceStub
from finetuned.v1.tuning_service_pb2_grpc import TuningServiceStub
from finetuned_service import app
from finetuned_service.engine.messages import Snapshot
from finetuned_service.jobs.task import Suspended
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server.refusals import refusal_of
from server.test_adapters_served import imported
from tiny_server import TinyServer, make_data_directory, running
from unit.test_job_process import job, reports_of, run_python, write_task


def question(parent: str, adapter: str) -> serving_service_pb2.ServeAdapterRequest:
    content = serving_service_pb2.Content(parts=[common_pb2.Part(text="hello")])
    return serving_service_pb2.ServeAdapterRequest(
        parent=parent,
        adapter=adapter,
        inputs=[serving_service_pb2.Input(content=content)],
        generate=serving_service_pb2.Generate(max_tokens=2),
    )


def test_adapter_of_another_tenant_is_not_found(
    client: Client, server: TinyServer, channel: grpc.Channel, tmp_path: Path
) -> None:
    imported(client, server, tmp_path, "private", 41)
    name = "tenants/default/adapters/private"
    stub = ServingServiceStub(channel)
    assert list(stub.ServeAdapter(question("tenants/default", name)))
    found = refusal_of(lambda: stub.ServeAdapter(question("tenants/other", name)))
    assert (found.code, found.metadata["resource"]) == ("NOT_FOUND", name)
    batch = serving_service_pb2.BatchServeAdapterRequest(
        parent="tenants/other",
        requests=[question("tenants/other", name), question("", name), question("tenants/default", name)],
    )
    reasons = [item.error.reason for item in stub.BatchServeAdapter(batch).items]
    assert reasons == ["RESOURCE_NOT_FOUND", "RESOURCE_NOT_FOUND", "INVALID_FIELD"]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "ü" * 100_000], ids=["ascii", "not-ascii"])
def test_refusal_of_something_long_keeps_its_status_and_details(channel: grpc.Channel, text: str) -> None:
    asked = adapter_service_pb2.ListAdaptersRequest(parent=text)
    found = refusal_of(lambda: AdapterServiceStub(channel).ListAdapters(asked))
    assert (found.code, found.reason, found.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ("parent",))


def test_refusal_of_many_things_keeps_its_status_and_details(channel: grpc.Channel) -> None:
    asked = question("tenants/default", "tenants/default/adapters/x")
    asked.generate.stop.extend([""] * 5000)
    found = refusal_of(lambda: ServingServiceStub(channel).ServeAdapter(asked))
    assert (found.code, found.reason, len(found.fields)) == ("INVALID_ARGUMENT", "INVALID_FIELD", 20)


def test_job_too_large_to_be_listed_is_refused(channel: grpc.Channel) -> None:
    asked = tuning_service_pb2.QuantizeRequest(
        parent="tenants/default",
        display_name="d" * 300_000,
        spec=job_pb2.QuantizeSpec(weight_format=common_pb2.WEIGHT_FORMAT_INT8, output_base_id="large"),
    )
    found = refusal_of(lambda: TuningServiceStub(channel).Quantize(asked))
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


def test_source_of_an_import_too_long_to_be_listed_is_refused(channel: grpc.Channel) -> None:
    start = adapter_service_pb2.ImportAdapterStart(
        adapter="tenants/default/adapters/x", source="s" * 1001, accept_unverified_base=True
    )
    steps = [adapter_service_pb2.ImportAdapterRequest(start=start)]
    found = refusal_of(lambda: AdapterServiceStub(channel).ImportAdapter(iter(steps)))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("start.source",))


def upload(content: bytes, request_id: str) -> Iterator[dataset_service_pb2.UploadDatasetRequest]:
    yield dataset_service_pb2.UploadDatasetRequest(
        start=dataset_service_pb2.UploadStart(
            parent="tenants/default",
            dataset_id="fingerprint",
            upload_id="fingerprint",
            format=dataset_service_pb2.DATASET_FORMAT_JSONL,
            request_id=request_id,
        )
    )
    yield dataset_service_pb2.UploadDatasetRequest(
        chunk=dataset_service_pb2.UploadChunk(offset=0, data=content)
    )
    yield dataset_service_pb2.UploadDatasetRequest(
        finish=dataset_service_pb2.UploadFinish(size_bytes=len(content))
    )


def test_request_id_of_an_upload_stands_for_its_bytes(channel: grpc.Channel) -> None:
    stub = DatasetServiceStub(channel)
    row = b'{"text": "one"}\n'
    first = stub.UploadDataset(upload(row, "upload-1"))
    assert stub.UploadDataset(upload(row, "upload-1")) == first
    found = refusal_of(lambda: stub.UploadDataset(upload(row + b'{"text": "two"}\n', "upload-1")))
    assert found.reason == RequestIdReused.reason


def inspect(server: TinyServer) -> Snapshot:
    asked = asyncio.run_coroutine_threadsafe(server.server.engine.inspect(), server.loop)
    return asked.result(timeout=30)


def test_deleted_adapter_leaves_memory_though_it_was_pinned(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    def pinned() -> int:
        return sum(adapter.pinned for adapter in inspect(server).adapters)

    before = pinned()
    imported(client, server, tmp_path, "pinned", 42)
    client.adapters.load("pinned", pin=True)
    assert pinned() == before + 1
    client.adapters.delete("pinned")
    assert pinned() == before


def test_watch_is_sent_elsewhere_when_the_server_stops(tmp_path: Path) -> None:
    make_data_directory(tmp_path)
    with (
        ThreadPoolExecutor(1) as pool,
        running(tmp_path / "data", run_jobs=False, shutdown_grace_seconds=600.0) as server,
        grpc.insecure_channel(server.endpoint) as channel,
        Client(server.endpoint) as client,
    ):
        asked = tuning_service_pb2.WatchJobRequest(name=client.quantize("INT8", "never").name)
        watch = TuningServiceStub(channel).WatchJob(asked)
        assert next(watch).event.state.state == job_pb2.JOB_STATE_QUEUED
        refused = pool.submit(refusal_of, lambda: watch)
        stopped = asyncio.run_coroutine_threadsafe(server.server.stop(), server.loop)
        assert refused.result(timeout=60).reason == "SERVICE_UNAVAILABLE"
        stopped.result(timeout=60)


def test_health_tells_of_an_engine_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(app, "_SNAPSHOT_SECONDS", 0.05)
    make_data_directory(tmp_path)
    with running(tmp_path / "data") as server:
        health = f"127.0.0.1:{server.server.health_port}"
        with grpc.insecure_channel(health) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            states = stub.Watch(health_pb2.HealthCheckRequest(service="serving"), timeout=60)  # pyright: ignore[reportAttributeAccessIssue]  # its stubs lack Watch
            told = (state.status for state in states)
            serving, not_serving = (
                health_pb2.HealthCheckResponse.SERVING,
                health_pb2.HealthCheckResponse.NOT_SERVING,
            )
            assert serving in told
            engine = server.server.engine.process_id
            assert engine is not None
            os.kill(engine, signal.SIGSTOP)
            try:
                assert not_serving in told
            finally:
                os.kill(engine, signal.SIGCONT)
            assert serving in told


def test_full_disk_suspends_a_job_and_is_not_its_fault(tmp_path: Path) -> None:
    body = "open('/dev/full', 'wb', buffering=0).write(b'checkpoint')"
    suspended = reports_of(run_python(job(body), write_task(tmp_path)))[-1]
    assert isinstance(suspended, Suspended)
    assert suspended.reason == "DISK_FULL"
    assert "disk" in suspended.text
