"""Each limit of a tenant, reached through a real server: what the caller is told, and that nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from finetuned import Client, LimitUse, RawText, RetryPolicy
from finetuned.errors import NotFound, QuotaExceeded
from finetuned.v1 import (
    adapter_service_pb2,
    job_pb2,
    serving_service_pb2,
    tenant_service_pb2,
    tuning_service_pb2,
)
from finetuned.v1.adapter_service_pb2_grpc import AdapterServiceStub
from finetuned.v1.serving_service_pb2_grpc import ServingServiceStub
from finetuned.v1.tenant_service_pb2_grpc import TenantServiceStub
from finetuned.v1.tuning_service_pb2_grpc import TuningServiceStub
from finetuned_service.__main__ import main
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from server.refusals import refusal_of
from tiny_models import save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running
from tiny_worker import eventually

ROW = '{"prompt": "a", "completion": "b"}\n'
LIMITS: dict[str, dict[str, int]] = {
    "rows": {"datasets": 1},
    "bytes": {"storage_bytes": 2000},
    "shelf": {"adapters": 1, "adapter_versions": 2},
    "work": {"unfinished_jobs": 1},
    "talk": {"streams": 1},
    "fast": {"requests_per_second": 3},
    "many": {"datasets": 3},
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """A server with a tenant for each limit; it takes jobs and runs none."""
    directory = tmp_path_factory.mktemp("limited")
    make_data_directory(directory)
    (directory / "imports").mkdir()
    (directory / "imports" / "rows.jsonl").write_text(ROW)
    with running(
        directory / "data", run_jobs=False, tenants=LIMITS, import_roots=(directory / "imports",)
    ) as found:
        yield found


@pytest.fixture
def channel(limited: TinyServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(limited.endpoint) as found:
        yield found


@pytest.fixture
def as_tenant(limited: TinyServer) -> Iterator[Callable[[str], Client]]:
    """Clients that never try again."""
    opened: list[Client] = []

    def connect(tenant: str) -> Client:
        opened.append(Client(limited.endpoint, tenant=tenant, retry=RetryPolicy(attempts=1)))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def refused(call: Callable[[], Any], tenant: str, limit: str) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refusal:
        call()
    error = refusal.value
    assert error.metadata["limit"] == limit
    assert error.metadata["subject"] == f"tenants/{tenant}"
    assert error.metadata["allowed"] == str(LIMITS[tenant][limit])
    assert [(item.field, item.description) for item in error.violations] == [
        (f"tenants/{tenant}", error.message)
    ]
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds > 0
    return error


def use_of(client: Client, limit: str) -> LimitUse:
    return next(item for item in client.usage().limits if item.limit == limit)


def rows_file(directory: Path, rows: int = 1) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(ROW.replace("a", f"a{number}") for number in range(rows)))
    return path


def test_the_status_has_all_details_of_google_rpc(channel: grpc.Channel, as_tenant: Any) -> None:
    client = as_tenant("work")
    client.quantize("INT8", "first")
    spec = job_pb2.QuantizeSpec(weight_format="WEIGHT_FORMAT_INT8", output_base_id="second")
    asked = tuning_service_pb2.QuantizeRequest(parent="tenants/work", spec=spec)
    with pytest.raises(grpc.RpcError) as caught:
        TuningServiceStub(channel).Quantize(asked)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, quota, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    assert [detail.Unpack(kind) for detail, kind in zip(status.details, (info, quota, retry), strict=True)]
    assert (info.reason, info.domain) == ("QUOTA_EXCEEDED", "finetuned.v1")
    assert dict(info.metadata) == {
        "limit": "unfinished_jobs",
        "subject": "tenants/work",
        "used": "1",
        "allowed": "1",
    }
    assert [(item.subject, item.description) for item in quota.violations] == [
        ("tenants/work", status.message)
    ]
    assert retry.retry_delay.ToTimedelta().total_seconds() == 30
    assert len(list(client.jobs.list())) == 1
    client.jobs.cancel(next(iter(client.jobs.list())).name)
    client.jobs.cancel(client.quantize("INT8", "second").name)


def test_datasets(as_tenant: Any, limited: TinyServer, tmp_path: Path) -> None:
    client, path = as_tenant("rows"), rows_file(tmp_path)
    client.datasets.upload(path, "one")
    imported = (limited.data_directory.parent / "imports" / "rows.jsonl").as_uri()
    refused(lambda: client.datasets.upload(path, "two"), "rows", "datasets")
    refused(lambda: client.datasets.import_uri(imported, "two"), "rows", "datasets")
    assert [item.name for item in client.datasets.list()] == ["tenants/rows/datasets/one"]
    assert not list((limited.data_directory / "uploads" / "rows").iterdir())
    client.datasets.delete("one")
    client.datasets.upload(path, "two")
    assert use_of(client, "datasets") == LimitUse("datasets", 1, 1, "datasets", per_replica=False)


def test_storage(as_tenant: Any, tmp_path: Path, limited: TinyServer) -> None:
    client = as_tenant("bytes")
    client.datasets.upload(rows_file(tmp_path, rows=10), "fits")
    before = use_of(client, "storage_bytes")
    error = refused(
        lambda: client.datasets.upload(rows_file(tmp_path, rows=100), "large"), "bytes", "storage_bytes"
    )
    assert error.metadata["used"] == str(before.used)
    with pytest.raises(NotFound):
        client.datasets.get("large")
    # A job's result and an adapter have no room either.
    refused(lambda: client.quantize("INT8", "small"), "bytes", "storage_bytes")
    refused(lambda: client.train(dataset="fits", adapter="mine"), "bytes", "storage_bytes")
    files = save_tiny_adapter(tmp_path / "made", limited.base_directory, seed=1, rank=4).directory
    digest = client.server_info().base.digest
    refused(
        lambda: client.adapters.import_directory(files, "mine", expected_base_digest=digest),
        "bytes",
        "storage_bytes",
    )
    assert list(client.jobs.list()) == list(client.adapters.list()) == []
    assert use_of(client, "storage_bytes") == before


def imported_once(server: TinyServer, files: Path, adapter: str, base_digest: str) -> str:
    """The version that one request id makes of the files, however often it is sent."""
    start = adapter_service_pb2.ImportAdapterStart(
        adapter=adapter, expected_base_digest=base_digest, request_id="once"
    )
    chunks = [
        adapter_service_pb2.AdapterFileChunk(file_name=name, data=(files / name).read_bytes())
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    steps = [
        adapter_service_pb2.ImportAdapterRequest(start=start),
        *(adapter_service_pb2.ImportAdapterRequest(chunk=chunk) for chunk in chunks),
        adapter_service_pb2.ImportAdapterRequest(finish=adapter_service_pb2.ImportAdapterFinish()),
    ]
    with grpc.insecure_channel(server.endpoint) as channel:
        return AdapterServiceStub(channel).ImportAdapter(iter(steps)).version.name


def test_adapters_and_their_versions(as_tenant: Any, limited: TinyServer, tmp_path: Path) -> None:
    client = as_tenant("shelf")
    client.datasets.upload(rows_file(tmp_path, rows=20), "rows")
    digest = client.server_info().base.digest
    made = [
        save_tiny_adapter(tmp_path / f"made-{seed}", limited.base_directory, seed=seed, rank=4).directory
        for seed in range(3)
    ]

    def bring_in(seed: int, name: str) -> str:
        return client.adapters.import_directory(made[seed], name, expected_base_digest=digest).name

    bring_in(0, "one")
    refused(lambda: bring_in(1, "two"), "shelf", "adapters")
    refused(lambda: client.train(dataset="rows", adapter="two"), "shelf", "adapters")
    second = imported_once(limited, made[1], "tenants/shelf/adapters/one", digest)
    refused(lambda: bring_in(2, "one"), "shelf", "adapter_versions")
    assert imported_once(limited, made[1], "tenants/shelf/adapters/one", digest) == second
    refused(lambda: client.train(dataset="rows", adapter="one"), "shelf", "adapter_versions")
    assert [item.version_count for item in client.adapters.list()] == [2]
    client.adapters.delete("one")
    assert bring_in(2, "two") == "tenants/shelf/adapters/two/versions/1"


def test_calls_at_the_same_time_never_exceed_a_limit(as_tenant: Any, tmp_path: Path) -> None:
    client, path = as_tenant("many"), rows_file(tmp_path)

    def outcome(number: int) -> str:
        try:
            return client.datasets.upload(path, f"n{number}").name
        except QuotaExceeded:
            return ""

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(outcome, range(8)) if name]
    assert len(made) == 3
    assert sorted(item.name for item in client.datasets.list()) == sorted(made)
    assert use_of(client, "datasets").used == 3


def test_streams_are_given_back_on_every_ending(as_tenant: Any, channel: grpc.Channel) -> None:
    client = as_tenant("talk")
    asked = tuning_service_pb2.WatchJobRequest(name=client.quantize("INT8", "watched").name)
    prompt = RawText("hello")
    batch = serving_service_pb2.BatchServeAdapterRequest(parent="tenants/talk")

    def is_free() -> bool:
        return use_of(client, "streams").used == 0

    for end in (lambda call: call.cancel(), lambda _call: client.jobs.cancel(asked.name)):
        watch = TuningServiceStub(channel).WatchJob(asked)
        next(watch)
        assert use_of(client, "streams") == LimitUse("streams", 1, 1, "streams", per_replica=True)
        refused(lambda: client.generate(prompt, plain_base=True, max_tokens=1), "talk", "streams")
        found = refusal_of(lambda: ServingServiceStub(channel).BatchServeAdapter(batch))
        assert (found.reason, found.metadata["limit"]) == ("QUOTA_EXCEEDED", "streams")
        end(watch)
        eventually(is_free)
    # A refusal, and the end of an answer, give it back too.
    with pytest.raises(NotFound):
        client.generate(prompt, adapter="nobody")
    eventually(is_free)
    assert (
        client.generate(prompt, plain_base=True, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    )
    eventually(is_free)
    assert refusal_of(lambda: ServingServiceStub(channel).BatchServeAdapter(batch)).fields == ("requests",)
    eventually(is_free)


def test_a_client_that_vanishes_gives_its_stream_back(as_tenant: Any, limited: TinyServer) -> None:
    client = as_tenant("talk")
    asked = tuning_service_pb2.WatchJobRequest(name=client.quantize("INT8", "left").name)
    gone = grpc.insecure_channel(limited.endpoint)
    watch = TuningServiceStub(gone).WatchJob(asked)
    next(watch)
    assert use_of(client, "streams").used == 1
    gone.close()
    eventually(lambda: use_of(client, "streams").used == 0)


def test_requests_a_second(channel: grpc.Channel) -> None:
    stub, asked = TenantServiceStub(channel), tenant_service_pb2.GetUsageRequest(name="tenants/fast/usage")
    assert stub.GetUsage(asked).usage.limits[-1].allowed == 3
    found = refusal_of(lambda: [stub.GetUsage(asked) for _ in range(1000)])
    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert found.metadata["limit"] == "requests_per_second"
    assert found.retry_seconds is not None
    assert 0 < found.retry_seconds <= 1 / 3
    # Another tenant, and what names none, are not touched by it.
    stub.GetUsage(tenant_service_pb2.GetUsageRequest(name="tenants/default/usage"))
    ServingServiceStub(channel).GetServerInfo(serving_service_pb2.GetServerInfoRequest())


def test_the_client_waits_as_long_as_it_is_told(limited: TinyServer) -> None:
    with Client(limited.endpoint, tenant="fast", retry=RetryPolicy(attempts=100)) as client:
        for _ in range(6):
            client.usage()


def test_refusals_are_counted_by_limit_and_not_by_tenant(limited: TinyServer, as_tenant: Any) -> None:
    import urllib.request

    client = as_tenant("work")
    job = client.quantize("INT8", "counted")
    refused(lambda: client.quantize("INT8", "another"), "work", "unfinished_jobs")
    client.jobs.cancel(job.name)
    page = urllib.request.urlopen(limited.metrics_url, timeout=60).read().decode()
    [line] = [line for line in page.splitlines() if 'quota_refusals_total{limit="unfinished_jobs"}' in line]
    assert float(line.split()[-1]) >= 1
    assert "tenants/" not in page


def test_a_malformed_usage_name(channel: grpc.Channel) -> None:
    asked = tenant_service_pb2.GetUsageRequest(name="tenants/work")
    found = refusal_of(lambda: TenantServiceStub(channel).GetUsage(asked))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("name",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[limits]\ndatasets = 0\n", "limits.datasets is 0: allowed: 1 to"),
        ("[tenants.acme]\nstorage_bytes = -1\n", "tenants.acme.storage_bytes is -1: allowed: 1 to"),
        ("[tenants.acme]\nstreams = 99999999999999999\n", "allowed: 1 to 9007199254740992"),
        ('[limits]\nstreams = "many"\n', "limits.streams is 'many': input should be a valid integer"),
        ("[limits]\nrequests_per_second = nan\n", "limits.requests_per_second is nan"),
        ("[tenants.acme]\ndataset = 3\n", "tenants.acme.dataset is 3"),
        ("[tenants.Acme]\ndatasets = 3\n", "tenants.Acme"),
    ],
)
def test_limits_that_make_no_sense_are_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    config = tmp_path / "finetuned.toml"
    config.write_text(text)
    monkeypatch.setenv("FINETUNED_CONFIG", str(config))
    assert main(["serve", "--data-dir", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert told in error
    if "is 0" in told:
        assert "leave the line out for the default, or revoke a tenant's keys" in error
    assert not (tmp_path / "data").exists()
