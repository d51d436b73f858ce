"""What `import finetuned` offers, that both clients offer the same, and what it does not need."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import finetuned
import pytest
from finetuned import AsyncClient, Client, _aio_client, _client
from finetuned._calls import adapters, aliases, bases, datasets, encoding, serving, tenants, tuning
from finetuned._calls.call import Method
from finetuned.v1 import (
    adapter_service_pb2,
    base_service_pb2,
    dataset_service_pb2,
    serving_service_pb2,
    tenant_service_pb2,
    tuning_service_pb2,
)

PUBLIC = [
    "Adapter",
    "AdapterState",
    "AdapterVersion",
    "Alias",
    "Answers",
    "AsyncClient",
    "AsyncReplyStream",
    "Base",
    "Baseline",
    "BaselineExample",
    "Bottleneck",
    "BottleneckActivation",
    "BottleneckPlacement",
    "Checkpoint",
    "ClassWeights",
    "Classification",
    "ClassificationOptions",
    "Client",
    "ConfusionMatrix",
    "ContrastiveOptions",
    "DataOptions",
    "DataReport",
    "Dataset",
    "DatasetFormat",
    "DatasetReport",
    "Deadlines",
    "Delta",
    "Dpo",
    "Embedding",
    "EngineLoad",
    "Entity",
    "Environment",
    "Estimate",
    "EstimateBasis",
    "EvaluationFinished",
    "EvaluationOptions",
    "EvaluationSample",
    "ExportedAdapter",
    "ExportedLogs",
    "Fault",
    "FinetunedError",
    "FinishReason",
    "Full",
    "GenerateRequest",
    "Head",
    "Ia3",
    "Image",
    "Job",
    "JobError",
    "JobEvent",
    "JobKind",
    "JobPriority",
    "JobState",
    "JobStateReason",
    "JobUsage",
    "LabelCount",
    "LabelScore",
    "Layers",
    "LearningRateSchedule",
    "LengthSummary",
    "LimitUse",
    "Limits",
    "Lineage",
    "LongRows",
    "Lora",
    "MemoryUse",
    "Message",
    "Method",
    "Metric",
    "ModelFamily",
    "Notice",
    "Objective",
    "Optimization",
    "Overfitting",
    "Pooling",
    "Progress",
    "PromoteIf",
    "Prompt",
    "Qlora",
    "QuantizeReport",
    "QuantizeResult",
    "QuantizeSpec",
    "RawText",
    "ReplicaResidency",
    "Reply",
    "ReplyStream",
    "Residency",
    "RetryPolicy",
    "Role",
    "Sample",
    "RowKind",
    "ServedBy",
    "ServerInfo",
    "Settings",
    "Severity",
    "StateChanged",
    "TaggedToken",
    "Tagging",
    "TextPair",
    "Task",
    "TenantUsage",
    "Timing",
    "TokenLogprobs",
    "TrainResult",
    "TrainSpec",
    "Truncation",
    "UploadProgress",
    "Usage",
    "WeightFormat",
    "errors",
]
VERBS = {
    "": (
        "classify close embed generate generate_many quantize server_info stream tag_tokens train usage "
        "wait_until_ready within"
    ),
    "datasets": "delete get import_uri list upload",
    "jobs": "cancel delete events follow get list pause rerun resume tensorboard wait watch",
    "adapters": (
        "alias aliases delete delete_alias delete_version export get import_directory list load "
        "resident rollback set_alias unload version versions"
    ),
    "bases": "delete get list",
}
BLOCKED = [
    "accelerate",
    "bitsandbytes",
    "finetuned_service",
    "gguf",
    "jinja2",
    "numpy",
    "peft",
    "prometheus_client",
    "psutil",
    "safetensors",
    "sqlalchemy",
    "structlog",
    "tokenizers",
    "torch",
    "transformers",
]


def test_the_public_names() -> None:
    assert sorted(finetuned.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(finetuned, name) is not None


def verbs(kind: type) -> list[str]:
    return sorted(name for name, item in vars(kind).items() if inspect.isfunction(item) and name[0] != "_")


@pytest.mark.parametrize("room", VERBS)
def test_both_clients_have_the_same_verbs(room: str) -> None:
    name = room.capitalize()
    blocking = vars(_client)[name] if room else Client
    awaited = vars(_aio_client)[f"Async{name}"] if room else AsyncClient
    assert verbs(blocking) == sorted(VERBS[room].split())
    assert verbs(awaited) == verbs(blocking)
    for verb in verbs(blocking):
        ours, theirs = (inspect.signature(vars(kind)[verb]) for kind in (blocking, awaited))
        assert list(ours.parameters) == list(theirs.parameters)
        assert vars(blocking)[verb].__doc__


def test_verbs_explain_their_own_arguments() -> None:
    assert list(inspect.signature(Client.train).parameters)[:3] == ["self", "dataset", "adapter"]
    assert "names" not in inspect.signature(Client.train).parameters
    assert "TrainJob" in (Client.train.__doc__ or "")
    assert "temperature" in inspect.signature(Client.generate).parameters


def test_every_call_names_an_rpc_of_the_contract() -> None:
    services = {}
    for module in (
        adapter_service_pb2,
        base_service_pb2,
        dataset_service_pb2,
        serving_service_pb2,
        tenant_service_pb2,
        tuning_service_pb2,
    ):
        services |= dict(module.DESCRIPTOR.services_by_name)
    used = set()
    for module in (adapters, aliases, bases, datasets, encoding, serving, tenants, tuning):
        source = inspect.getsource(module)
        for service in services.values():
            if f'_SERVICE = "{service.name}"' in source:
                for rpc in service.methods:
                    if f'"{rpc.name}", pb.{rpc.output_type.name}' in source:
                        used.add(rpc.name)
    everything = {rpc.name for service in services.values() for rpc in service.methods}
    assert everything - used == set()
    method = Method("TuningService", "GetJob", tuning_service_pb2.GetJobResponse)
    assert method.path == "/finetuned.v1.TuningService/GetJob"


def run_without(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter in which nothing of the service extra can be imported."""
    block = f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", block + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A line of gRPC's core about how a connection ended is nothing that the client says.
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )


def test_the_client_works_without_torch_and_without_the_service() -> None:
    done = run_without(
        """
from finetuned import Client
from finetuned.testing import FakeServer
with FakeServer() as server, Client(server.endpoint) as client:
    print(client.generate("hello", plain_base=True).text)
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)


def test_importing_the_client_brings_neither_the_command_line_nor_the_fake_server() -> None:
    done = run_without(
        "import finetuned\n"
        "print(sorted({'rich', 'typer', 'finetuned.cli', 'finetuned.testing', 'urllib.request'} & set(sys.modules)))"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_the_command_line_works_without_torch_and_says_what_to_install() -> None:
    done = run_without("from finetuned.cli import main\nsys.argv = ['finetuned', '--help']\nmain()")
    assert (done.stderr, done.returncode) == ("", 0)
    assert "Where to begin" in done.stdout
    for command in ("serve", "base"):
        missing = run_without(
            f"from finetuned.cli import main\nsys.argv = ['finetuned', '{command}', '--help']\nmain()"
        )
        assert missing.returncode == 1
        assert missing.stdout == ""
        assert "pip install 'finetuned-service[service]'" in missing.stderr
