"""ServeAdapter, jobs and names that are refused by a real server."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from finetuned import Client
from finetuned.errors import InvalidField, ResourceExhausted
from finetuned.v1 import (
    adapter_service_pb2,
    common_pb2,
    dataset_service_pb2,
    job_pb2,
    tuning_service_pb2,
)
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1.adapter_service_pb2_grpc import AdapterServiceStub
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuned.v1.serving_service_pb2_grpc import ServingServiceStub
from finetuned.v1.tuning_service_pb2_grpc import TuningServiceStub
from server.refusals import refusal_of
from tiny_server import make_data_directory, running

TENANT = "tenants/default"


def request(text: str = "hello", **generate: object) -> pb.ServeAdapterRequest:
    part = common_pb2.Part(text=text)
    message = common_pb2.Message(role=common_pb2.ROLE_USER, parts=[part])
    return pb.ServeAdapterRequest(
        parent=TENANT,
        plain_base=pb.PlainBase(),
        inputs=[pb.Input(conversation=pb.Conversation(messages=[message]))],
        generate=pb.Generate(**generate),  # type: ignore[arg-type]
    )


def test_neither_adapter_nor_plain_base(channel: grpc.Channel) -> None:
    unset = request()
    unset.ClearField("model")
    found = refusal_of(lambda: ServingServiceStub(channel).ServeAdapter(unset))
    assert (found.code, found.reason, found.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ("model",))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_tokens": 0}, "generate.max_tokens"),
        ({"max_tokens": 100_000}, "generate.max_tokens"),
        ({"temperature": -1.0}, "generate.temperature"),
        ({"temperature": float("nan")}, "generate.temperature"),
        ({"top_k": 0}, "generate.top_k"),
        ({"top_p": 0.0}, "generate.top_p"),
        ({"top_p": 1.5}, "generate.top_p"),
        ({"seed": -1}, "generate.seed"),
        ({"stop": [""]}, "generate.stop[0]"),
        ({"stop": ["x"] * 17}, "generate.stop"),
        ({"logprobs": 21}, "generate.logprobs"),
        ({"truncation": 77}, "generate.truncation"),
    ],
)
def test_setting_out_of_its_limits(channel: grpc.Channel, settings: dict[str, object], field: str) -> None:
    found = refusal_of(lambda: ServingServiceStub(channel).ServeAdapter(request(**settings)))
    assert (found.code, found.reason, found.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", (field,))
    assert "allowed" in found.message


def test_prompt_longer_than_the_context_names_the_limit(channel: grpc.Channel) -> None:
    found = refusal_of(lambda: ServingServiceStub(channel).ServeAdapter(request("word " * 2000)))
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert found.metadata["context_tokens"] == "256"


@pytest.mark.parametrize("truncation", [pb.TRUNCATION_KEEP_END, pb.TRUNCATION_KEEP_START])
def test_long_prompt_is_cut_only_when_asked(channel: grpc.Channel, truncation: pb.Truncation) -> None:
    asked = request("word " * 2000, truncation=truncation, max_tokens=3, ignore_eos=True)
    *_, last = ServingServiceStub(channel).ServeAdapter(asked)
    assert last.done.outcomes[0].truncated_tokens > 0
    assert last.done.usage.prompt_tokens == 256 - 3


@pytest.mark.parametrize("task", ["classify", "tag_tokens", "embed"])
def test_a_task_that_a_decoder_is_not_for(channel: grpc.Channel, task: str) -> None:
    asked = request()
    del asked.inputs[:]
    asked.inputs.add().content.parts.add(text="hello")
    getattr(asked, task).SetInParent()
    found = refusal_of(lambda: ServingServiceStub(channel).ServeAdapter(asked))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("task",))
    assert "a decoder (LlamaForCausalLM), which can be asked to generate" in found.message


def test_unknown_resources_are_not_found(channel: grpc.Channel) -> None:
    asked = request()
    asked.adapter = f"{TENANT}/adapters/nobody"
    calls = [
        lambda: ServingServiceStub(channel).ServeAdapter(asked),
        lambda: TuningServiceStub(channel).GetJob(
            tuning_service_pb2.GetJobRequest(name=f"{TENANT}/jobs/nobody")
        ),
        lambda: TuningServiceStub(channel).WatchJob(
            tuning_service_pb2.WatchJobRequest(name=f"{TENANT}/jobs/nobody")
        ),
        lambda: DatasetServiceStub(channel).GetDataset(
            dataset_service_pb2.GetDatasetRequest(name=f"{TENANT}/datasets/nobody")
        ),
        lambda: AdapterServiceStub(channel).GetAdapter(
            adapter_service_pb2.GetAdapterRequest(name=f"{TENANT}/adapters/nobody")
        ),
    ]
    for call in calls:
        found = refusal_of(call)
        assert (found.code, found.reason) == ("NOT_FOUND", "RESOURCE_NOT_FOUND")
        assert found.metadata["resource"].endswith("/nobody")


def test_training_settings_are_checked_before_anything_is_stored(
    channel: grpc.Channel, client: Client, tmp_rows: Path
) -> None:
    client.datasets.upload(tmp_rows, "settings")
    spec = job_pb2.TrainSpec(
        dataset=f"{TENANT}/datasets/settings",
        adapter=f"{TENANT}/adapters/settings",
        lora=job_pb2.LoraMethod(rank=0),
    )
    stub = TuningServiceStub(channel)
    asked = tuning_service_pb2.TrainJobRequest(parent=TENANT, spec=spec)
    found = refusal_of(lambda: stub.TrainJob(asked))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("spec.lora.rank",))
    spec.lora.rank = 4
    spec.lora.target_modules.append("q_porj")
    asked = tuning_service_pb2.TrainJobRequest(parent=TENANT, spec=spec)
    found = refusal_of(lambda: stub.TrainJob(asked))
    assert found.fields == ("spec.lora.target_modules",)
    assert "q_proj" in found.message
    listed = tuning_service_pb2.ListJobsRequest(parent=TENANT, adapter=f"{TENANT}/adapters/settings")
    assert list(stub.ListJobs(listed).jobs) == []


def test_validate_only_measures_nothing(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "unmeasured")
    with pytest.raises(InvalidField) as refused:
        client.train(
            dataset="unmeasured", adapter="unmeasured", validate_only=True, pause_after_estimate=True
        )
    assert [violation.field for violation in refused.value.violations] == ["pause_after_estimate"]
    assert "leave one of them out" in refused.value.message
    assert list(client.jobs.list(adapter="unmeasured")) == []


def test_a_job_that_cannot_fit_its_memory_is_refused(tmp_path: Path, tmp_rows: Path) -> None:
    make_data_directory(tmp_path)
    with (
        running(tmp_path / "data", job_memory_bytes=2**28) as server,
        Client(server.endpoint) as client,
    ):
        client.datasets.upload(tmp_rows, "rows")
        for validate_only in (True, False):
            with pytest.raises(ResourceExhausted) as refused:
                client.train(dataset="rows", adapter="large", validate_only=validate_only)
            assert refused.value.metadata["memory_budget_bytes"] == str(2**28)
            assert int(refused.value.metadata["memory_bytes"]) > 2**28
            assert "allowed: 268 MB (job_memory_bytes). Train fewer" in refused.value.message
        assert list(client.jobs.list()) == []


def test_validate_only_returns_the_resolved_job_and_stores_nothing(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "dry")
    job = client.train(dataset="dry", adapter="dry", validate_only=True)
    assert job.name == ""
    assert job.train is not None
    assert job.train.optimization is not None
    assert job.train.optimization.max_steps is not None
    assert job.data_report is not None
    assert job.data_report.train_rows + job.data_report.eval_rows == 20
    assert job.estimate is not None
    assert job.estimate.tokens > 0
    assert list(client.jobs.list(adapter="dry")) == []


@pytest.mark.parametrize(
    "name", ["", "tenants/Default/jobs/x", "tenants/default/jobs/", "jobs/x", "tenants/a/jobs/x/y"]
)
def test_malformed_names(channel: grpc.Channel, name: str) -> None:
    asked = tuning_service_pb2.GetJobRequest(name=name)
    found = refusal_of(lambda: TuningServiceStub(channel).GetJob(asked))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("name",))
    assert "tenants/{tenant}/jobs/{id}" in found.message


def test_page_tokens_and_sizes_are_checked(channel: grpc.Channel) -> None:
    stub = TuningServiceStub(channel)
    bad_size = tuning_service_pb2.ListJobsRequest(parent=TENANT, page_size=5000)
    assert refusal_of(lambda: stub.ListJobs(bad_size)).fields == ("page_size",)
    bad_token = tuning_service_pb2.ListJobsRequest(parent=TENANT, page_token="%%%")
    assert refusal_of(lambda: stub.ListJobs(bad_token)).fields == ("page_token",)


def test_a_page_token_of_another_list_is_refused(
    client: Client, channel: grpc.Channel, tmp_rows: Path
) -> None:
    for name in ("page-a", "page-b"):
        client.datasets.upload(tmp_rows, name)
    datasets = DatasetServiceStub(channel)
    first = datasets.ListDatasets(dataset_service_pb2.ListDatasetsRequest(parent=TENANT, page_size=1))
    token = first.next_page_token
    assert token
    going_on = dataset_service_pb2.ListDatasetsRequest(parent=TENANT, page_size=5, page_token=token)
    assert datasets.ListDatasets(going_on).datasets
    elsewhere = [
        lambda: datasets.ListDatasets(
            dataset_service_pb2.ListDatasetsRequest(
                parent=TENANT, page_token=token, row_kind=dataset_service_pb2.ROW_KIND_TEXT
            )
        ),
        lambda: datasets.ListDatasets(
            dataset_service_pb2.ListDatasetsRequest(parent="tenants/other", page_token=token)
        ),
        lambda: AdapterServiceStub(channel).ListAdapters(
            adapter_service_pb2.ListAdaptersRequest(parent=TENANT, page_token=token)
        ),
        lambda: TuningServiceStub(channel).ListJobs(
            tuning_service_pb2.ListJobsRequest(parent=TENANT, page_token=token)
        ),
    ]
    for call in elsewhere:
        found = refusal_of(call)
        assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("page_token",))
        assert "Leave it empty to begin with the first page" in found.message


@pytest.mark.parametrize(
    "method", ["ServingService/ServeAdapter", "TuningService/GetJob", "DatasetService/UploadDataset"]
)
def test_bytes_that_are_no_message_are_the_callers_fault(channel: grpc.Channel, method: str) -> None:
    garbage, path = b"\xff\xff\xff\xff", f"/finetuned.v1.{method}"
    if method.endswith("UploadDataset"):
        found = refusal_of(lambda: channel.stream_unary(path)(iter([garbage])))
    elif method.endswith("ServeAdapter"):
        found = refusal_of(lambda: channel.unary_stream(path)(garbage))
    else:
        found = refusal_of(lambda: channel.unary_unary(path)(garbage))
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ("request",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_not_finite(channel: grpc.Channel, value: float) -> None:
    spec = job_pb2.TrainSpec(
        dataset=f"{TENANT}/datasets/x",
        adapter=f"{TENANT}/adapters/x",
        optimization=job_pb2.Optimization(max_gradient_norm=value),
    )
    asked = tuning_service_pb2.TrainJobRequest(parent=TENANT, spec=spec)
    found = refusal_of(lambda: TuningServiceStub(channel).TrainJob(asked))
    assert found.fields == ("spec.optimization.max_gradient_norm",)
