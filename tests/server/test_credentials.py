"""Every RPC of a guarded server: without a key, with a wrong one, and for what is another tenant's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from finetuned import Client, Residency
from finetuned.v1 import adapter_service_pb2 as adapters
from finetuned.v1 import base_service_pb2 as bases
from finetuned.v1 import common_pb2 as common
from finetuned.v1 import dataset_service_pb2 as datasets
from finetuned.v1 import job_pb2 as jobs
from finetuned.v1 import serving_service_pb2 as serving
from finetuned.v1 import tenant_service_pb2 as tenants
from finetuned.v1 import tuning_service_pb2 as tuning
from finetuned.values.adapters import ReplicaResidency
from finetuned_service.tenancy.keys import ApiKeys
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from server.credentials import GuardedServer, Refused, Rpc, fill, guarded, make_key, refused
from server.refusals import refusal_of

REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
ABOUT_THE_SERVER = {"GetServerInfo", "ServerReflectionInfo"}
"""All others are about something that belongs to a tenant."""


def question(parent: str, adapter: str) -> serving.ServeAdapterRequest:
    content = serving.Content(parts=[common.Part(text="hello")])
    return serving.ServeAdapterRequest(
        parent=parent,
        adapter=adapter,
        inputs=[serving.Input(content=content)],
        generate=serving.Generate(max_tokens=2),
    )


def training(parent: str, dataset: str, **spec: Any) -> tuning.TrainJobRequest:
    wanted = jobs.TrainSpec(dataset=dataset, adapter=f"{parent}/adapters/new", **spec)
    wanted.lora.SetInParent()
    return tuning.TrainJobRequest(parent=parent, spec=wanted)


def quantizing(parent: str, **spec: Any) -> tuning.QuantizeRequest:
    wanted = jobs.QuantizeSpec(weight_format=common.WEIGHT_FORMAT_INT8, output_base_id="made", **spec)
    return tuning.QuantizeRequest(parent=parent, spec=wanted)


def importing(adapter: str) -> adapters.ImportAdapterRequest:
    start = adapters.ImportAdapterStart(adapter=adapter, accept_unverified_base=True)
    return adapters.ImportAdapterRequest(start=start)


def uploading(parent: str) -> datasets.UploadDatasetRequest:
    start = datasets.UploadStart(
        parent=parent, dataset_id="later", upload_id="have", format=datasets.DATASET_FORMAT_JSONL
    )
    return datasets.UploadDatasetRequest(start=start)


def named(tenant: str, thing: str, job: str) -> dict[str, tuple[str, Message]]:
    """For every RPC: the name it asks for, and a request that would succeed for its owner.

    Args:
        tenant: whose.
        thing: the id of dataset, adapter, upload and base; its version is 1 and its alias `default`.
        job: the id of the job.
    """
    parent = f"tenants/{tenant}"
    adapter, dataset, base = (f"{parent}/{kind}/{thing}" for kind in ("adapters", "datasets", "bases"))
    version, alias, run = f"{adapter}/versions/1", f"{adapter}/aliases/default", f"{parent}/jobs/{job}"
    upload, usage = f"{parent}/uploads/{thing}", f"{parent}/usage"
    return {
        "GetAdapter": (adapter, adapters.GetAdapterRequest(name=adapter)),
        "ListAdapters": (parent, adapters.ListAdaptersRequest(parent=parent)),
        "DeleteAdapter": (adapter, adapters.DeleteAdapterRequest(name=adapter)),
        "GetAdapterVersion": (version, adapters.GetAdapterVersionRequest(name=version)),
        "ListAdapterVersions": (adapter, adapters.ListAdapterVersionsRequest(parent=adapter)),
        "DeleteAdapterVersion": (version, adapters.DeleteAdapterVersionRequest(name=version)),
        "ImportAdapter": (adapter, importing(adapter)),
        "ExportAdapter": (version, adapters.ExportAdapterRequest(name=version)),
        "LoadAdapter": (version, adapters.LoadAdapterRequest(name=version)),
        "UnloadAdapter": (version, adapters.UnloadAdapterRequest(name=version)),
        "ListResidentVersions": (parent, adapters.ListResidentVersionsRequest(parent=parent)),
        "GetAlias": (alias, adapters.GetAliasRequest(name=alias)),
        "ListAliases": (adapter, adapters.ListAliasesRequest(parent=adapter)),
        "SetAlias": (alias, adapters.SetAliasRequest(name=alias, version="1")),
        "DeleteAlias": (alias, adapters.DeleteAliasRequest(name=alias)),
        "GetBase": (base, bases.GetBaseRequest(name=base)),
        "ListBases": (parent, bases.ListBasesRequest(parent=parent)),
        "DeleteBase": (base, bases.DeleteBaseRequest(name=base)),
        "UploadDataset": (parent, uploading(parent)),
        "GetUpload": (upload, datasets.GetUploadRequest(name=upload)),
        "ImportDataset": (
            parent,
            datasets.ImportDatasetRequest(
                parent=parent,
                dataset_id="have",
                uri="file:///rows",
                format=datasets.DATASET_FORMAT_JSONL,
                request_id="r",
            ),
        ),
        "GetDataset": (dataset, datasets.GetDatasetRequest(name=dataset)),
        "ListDatasets": (parent, datasets.ListDatasetsRequest(parent=parent)),
        "DeleteDataset": (dataset, datasets.DeleteDatasetRequest(name=dataset)),
        "ServeAdapter": (parent, question(parent, adapter)),
        "BatchServeAdapter": (
            parent,
            serving.BatchServeAdapterRequest(parent=parent, requests=[question(parent, adapter)]),
        ),
        "GetUsage": (usage, tenants.GetUsageRequest(name=usage)),
        "TrainJob": (parent, training(parent, dataset)),
        "Quantize": (parent, quantizing(parent)),
        "GetJob": (run, tuning.GetJobRequest(name=run)),
        "ListJobs": (parent, tuning.ListJobsRequest(parent=parent)),
        "WatchJob": (run, tuning.WatchJobRequest(name=run)),
        "ListJobEvents": (run, tuning.ListJobEventsRequest(parent=run)),
        "ExportTensorBoard": (run, tuning.ExportTensorBoardRequest(name=run)),
        "PauseJob": (run, tuning.PauseJobRequest(name=run)),
        "ResumeJob": (run, tuning.ResumeJobRequest(name=run)),
        "CancelJob": (run, tuning.CancelJobRequest(name=run)),
        "DeleteJob": (run, tuning.DeleteJobRequest(name=run)),
    }


ANSWERED_FOR_OWNERS = {
    *(
        "ListAdapters",
        "ListResidentVersions",
        "ListBases",
        "ListDatasets",
        "ListJobs",
        "GetUsage",
        "BatchServeAdapter",
    ),
    *("UploadDataset", "ImportDataset", "ImportAdapter", "Quantize", "TrainJob", "ServeAdapter"),
}
"""Of an own tenant that has nothing: with an answer, or a refusal of something else than the subject."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    with guarded(tmp_path_factory.mktemp("guarded")) as found:
        yield found


@pytest.fixture(scope="module")
def job(server: GuardedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fill(server, tmp_path_factory.mktemp("acme"))


@pytest.fixture(scope="module")
def beta(server: GuardedServer) -> Iterator[grpc.Channel]:
    with server.channel(server.keys["beta"]) as channel:
        yield channel


@pytest.fixture(scope="module")
def rpcs(beta: grpc.Channel) -> dict[str, Rpc]:
    """All that the server has, as it tells itself."""
    database = ProtoReflectionDescriptorDatabase(beta)
    pool = DescriptorPool(database)
    found: dict[str, Rpc] = {}
    for name in database.get_services():
        for method in pool.FindServiceByName(name).methods:
            found[method.name] = Rpc(name, method.name, method.client_streaming, method.server_streaming)
    return found


def test_reflection_shows_every_call_and_each_has_an_example(rpcs: dict[str, Rpc]) -> None:
    assert set(rpcs) == set(named("acme", "have", "x")) | ABOUT_THE_SERVER
    assert {rpc.service for rpc in rpcs.values() if not rpc.service.startswith("finetuned.v1.")} == {
        REFLECTION
    }


def unauthenticated(server: GuardedServer, rpcs: dict[str, Rpc], **options: Any) -> set[str]:
    """What is wrong with the credentials, as every RPC tells it."""
    told: set[str] = set()
    with server.channel() as channel:
        for rpc in rpcs.values():
            found = refusal_of(lambda rpc=rpc: rpc.call(channel, b"", **options))
            assert (found.code, found.reason, rpc.name) == ("UNAUTHENTICATED", "UNAUTHENTICATED", rpc.name)
            told.add(found.metadata["problem"])
    return told


def bearer(key: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {key}"),)}


def test_no_call_without_a_key(server: GuardedServer, rpcs: dict[str, Rpc]) -> None:
    assert unauthenticated(server, rpcs) == {"MISSING"}


def test_no_call_with_a_key_of_another_server(server: GuardedServer, rpcs: dict[str, Rpc]) -> None:
    assert unauthenticated(server, rpcs, **bearer(make_key("acme")[0])) == {"UNKNOWN"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda keys: f"{keys['acme'][:-1]}{'a' if keys['acme'][-1] != 'a' else 'b'}", "UNKNOWN"),
        (lambda keys: keys["acme"][:13] + keys["beta"][13:], "UNKNOWN"),
        (lambda keys: keys["acme"].upper(), "MALFORMED"),
        (lambda keys: "secret", "MALFORMED"),
        (lambda keys: "", "MALFORMED"),
        (lambda keys: keys["expired"], "EXPIRED"),
        (lambda keys: keys["deleted"], "TENANT_DELETED"),
    ],
    ids=["last-letter", "other-secret", "case", "no-form", "empty", "expired", "deleted-tenant"],
)
def test_no_call_with_a_key_that_is_not_accepted(
    server: GuardedServer, rpcs: dict[str, Rpc], change: Any, problem: str
) -> None:
    assert unauthenticated(server, rpcs, **bearer(change(server.keys))) == {problem}


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic dXNlcjpwYXNz"),),
        (("authorization", "Bearer ftk_x"), ("authorization", "Bearer ftk_y")),
    ],
    ids=["scheme", "two"],
)
def test_no_call_with_an_authorization_that_is_not_understood(
    server: GuardedServer, rpcs: dict[str, Rpc], metadata: Any
) -> None:
    assert unauthenticated(server, rpcs, metadata=metadata) == {"MALFORMED"}


def test_refused_keys_say_which_key_when_and_the_remedy(server: GuardedServer, rpcs: dict[str, Rpc]) -> None:
    with server.channel() as channel:
        for who, when in (("expired", "2026-02-01"), ("deleted", "2026-03-01")):
            key = server.keys[who]
            said = refusal_of(lambda key=key: rpcs["GetServerInfo"].call(channel, b"", **bearer(key))).message
            assert when in said
            assert key.split("_")[1] in said
            assert key.split("_")[2] not in said
            assert "ask the operator" in said


def answer(rpcs: dict[str, Rpc], channel: grpc.Channel, rpc: str, request: Message) -> Refused | None:
    return refused(lambda: rpcs[rpc].call(channel, request.SerializeToString()))


def test_what_is_another_tenants_is_not_found_as_if_it_did_not_exist(
    rpcs: dict[str, Rpc], beta: grpc.Channel, job: str
) -> None:
    """Compared with what does not exist in the same tenant, in one that does not exist, and in the own one."""
    gone = job[:-4] + "0000"
    tables = [
        named("acme", "have", job),
        named("acme", "gone", gone),
        named("none", "have", job),
        named("beta", "gone", gone),
    ]
    for rpc in tables[0]:
        seen: list[Refused] = []
        for table in tables[: 4 if rpc not in ANSWERED_FOR_OWNERS else 3]:
            asked, request = table[rpc]
            found = answer(rpcs, beta, rpc, request)
            assert found is not None, f"{rpc} answers for {asked}"
            assert (rpc, found.code) == (rpc, "NOT_FOUND")
            seen.append(found.without("/".join(asked.split("/")[:4])))
        assert all(other == seen[0] for other in seen), rpc


def test_what_is_asked_of_another_tenant_leaves_no_trace(
    server: GuardedServer, rpcs: dict[str, Rpc], beta: grpc.Channel, job: str
) -> None:
    """Neither what deletes and creates has happened, nor do the calls count against the tenant's limits."""
    with server.client("acme") as client:
        before = [client.adapters.get("have"), client.datasets.get("have"), client.jobs.get(job)]
        calls = [limit for limit in client.usage().limits if limit.limit != "requests_per_second"]
        for name, (_, request) in named("acme", "have", job).items():
            assert (
                refused(lambda rpc=rpcs[name], r=request: rpc.call(beta, r.SerializeToString())) is not None
            )
        assert [client.adapters.get("have"), client.datasets.get("have"), client.jobs.get(job)] == before
        assert [limit for limit in client.usage().limits if limit.limit != "requests_per_second"] == calls
    with server.client("beta") as client:
        assert list(client.adapters.list()) == list(client.datasets.list()) == list(client.jobs.list()) == []
        assert [base.name for base in client.bases.list()] == ["bases/tiny"]


def nested(job: str, thing: str, tenant: str) -> dict[str, tuple[str, str, Message]]:
    """Calls of beta's own whose request names what is `tenant`'s: RPC, name, request."""
    adapter, dataset, base = (
        f"tenants/{tenant}/{kind}/{thing}" for kind in ("adapters", "datasets", "bases")
    )
    run = f"tenants/{tenant}/jobs/{job}"
    rerun = tuning.TrainJobRequest(parent="tenants/beta", rerun_of=run)
    version = f"{adapter}/versions/1"
    return {
        "adapter": ("ServeAdapter", adapter, question("tenants/beta", adapter)),
        "version": ("ServeAdapter", version, question("tenants/beta", version)),
        "dataset": ("TrainJob", dataset, training("tenants/beta", dataset)),
        "base": ("TrainJob", base, training("tenants/beta", "tenants/beta/datasets/mine", base=base)),
        "eval_dataset": (
            "TrainJob",
            dataset,
            training("tenants/beta", "tenants/beta/datasets/mine", eval_dataset=dataset),
        ),
        "rerun_of": ("TrainJob", run, rerun),
        "quantized base": ("Quantize", base, quantizing("tenants/beta", base=base)),
        "quantize dataset": ("Quantize", dataset, quantizing("tenants/beta", dataset=dataset)),
    }


def test_names_inside_a_request_tell_nothing_of_other_tenants(
    server: GuardedServer, rpcs: dict[str, Rpc], beta: grpc.Channel, job: str, tmp_rows: Path
) -> None:
    with server.client("beta") as client:
        client.datasets.upload(tmp_rows, "mine")
        gone = job[:-4] + "0000"
        tables = [nested(job, "have", "acme"), nested(gone, "gone", "acme"), nested(gone, "gone", "beta")]
        for case in tables[0]:
            seen: list[Refused] = []
            for table in tables:
                rpc, asked, request = table[case]
                found = answer(rpcs, beta, rpc, request)
                assert found is not None, case
                assert (found.code, case) == ("NOT_FOUND", case)
                seen.append(found.without("/".join(asked.split("/")[:4])))
            assert seen[0] == seen[1] == seen[2], case
        assert list(client.jobs.list()) == []
        client.datasets.delete("mine")


def test_request_ids_and_names_of_tenants_are_apart(server: GuardedServer, job: str, tmp_rows: Path) -> None:
    with server.client("acme") as acme, server.client("beta") as beta:
        theirs = acme.datasets.get("have")
        other = tmp_rows.with_name("other.jsonl")
        other.write_text('{"text": "something else"}\n')
        mine = beta.datasets.upload(other, "have")
        assert mine.digest != theirs.digest
        assert acme.datasets.get("have") == theirs
        beta.datasets.delete("have")


def test_same_content_of_two_tenants_is_apart(server: GuardedServer, job: str, tmp_path: Path) -> None:
    """One in the engine; yet none learns of the other's, and none takes it out of memory."""

    def told(client: Client, version: str) -> ReplicaResidency:
        return client.adapters.version(version).residency[0]

    def held(client: Client) -> tuple[Residency, bool]:
        found = told(client, "have@1")
        return found.residency, found.pinned

    with server.client("acme") as acme, server.client("beta") as beta:
        acme.adapters.export("have", tmp_path / "files")
        acme.adapters.load("have@1", pin=True)
        digest = beta.server_info().base.digest
        beta.adapters.import_directory(tmp_path / "files", "same", expected_base_digest=digest)
        assert beta.adapters.version("same@1").digest == acme.adapters.version("have@1").digest
        assert held(acme) == (Residency.DEVICE, True)
        hidden = told(beta, "same@1")
        assert (hidden.residency, hidden.pinned, hidden.resident_bytes) == (Residency.STORED, False, 0)
        for change in (
            lambda: beta.adapters.load("same@1", residency=Residency.HOST),
            lambda: beta.adapters.load("same@1", residency=Residency.HOST, pin=True),
            lambda: beta.adapters.unload("same@1"),
            lambda: beta.adapters.delete("same"),
        ):
            change()
            assert held(acme) == (Residency.DEVICE, True)
        acme.adapters.unload("have@1")
        assert held(acme) == (Residency.STORED, False)


def test_shared_base_is_read_by_all_and_deleted_by_admins(
    server: GuardedServer, rpcs: dict[str, Rpc]
) -> None:
    asked = bases.DeleteBaseRequest(name="bases/tiny").SerializeToString()
    with server.channel(server.keys["beta"]) as channel:
        assert refused(lambda: rpcs["GetBase"].call(channel, asked)) is None
        found = refusal_of(lambda: rpcs["DeleteBase"].call(channel, asked))
    assert (found.code, found.metadata) == ("PERMISSION_DENIED", {"role": "user", "needed_role": "admin"})
    with server.channel(server.keys["admin"]) as channel:
        assert refusal_of(lambda: rpcs["DeleteBase"].call(channel, asked)).reason == "RESOURCE_IN_USE"


def test_admin_acts_for_any_tenant(server: GuardedServer, job: str) -> None:
    with server.client("admin", tenant="acme") as client:
        assert client.jobs.get(job).name == f"tenants/acme/jobs/{job}"
        assert [dataset.name for dataset in client.datasets.list()] == ["tenants/acme/datasets/have"]


def test_malformed_name_is_refused_as_such_only_in_the_own_tenant(
    rpcs: dict[str, Rpc], beta: grpc.Channel
) -> None:
    for name, code in (
        ("tenants/beta/jobs/UPPER", "INVALID_ARGUMENT"),
        ("tenants/acme/jobs/UPPER", "NOT_FOUND"),
        ("tenants/beta/../acme/jobs/x", "INVALID_ARGUMENT"),
        ("tenants//jobs/x", "NOT_FOUND"),
        ("jobs/x", "INVALID_ARGUMENT"),
        ("", "INVALID_ARGUMENT"),
    ):
        asked = tuning.GetJobRequest(name=name).SerializeToString()
        assert refusal_of(lambda asked=asked: rpcs["GetJob"].call(beta, asked)).code == code


def test_revocation_holds_from_the_next_call_on(server: GuardedServer, rpcs: dict[str, Rpc]) -> None:
    before = server.keys_file.read_text()
    keys = ApiKeys.model_validate_json(before)
    text, extra = make_key("acme")
    info = rpcs["GetServerInfo"]
    with server.channel(text) as channel:
        assert refusal_of(lambda: info.call(channel, b"")).metadata == {"problem": "UNKNOWN"}
        replace(server.keys_file, ApiKeys(keys=(*keys.keys, extra)).model_dump_json())
        assert refused(lambda: info.call(channel, b"")) is None
        replace(server.keys_file, '{"version": 1, "keys": [{"id"')
        assert refused(lambda: info.call(channel, b"")) is None, "half a file has locked everybody out"
        replace(server.keys_file, before)
        assert refusal_of(lambda: info.call(channel, b"")).metadata == {"problem": "UNKNOWN"}


def replace(path: Path, text: str) -> None:
    """As `finetuned keys` and the kubelet do: another file takes the name."""
    other = path.with_name("other.json")
    other.write_text(text)
    other.replace(path)


def test_refusals_fit_their_details(server: GuardedServer, rpcs: dict[str, Rpc]) -> None:
    with server.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        rpcs["GetJob"].call(channel, b"")
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert [detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in status.details] == [True]
