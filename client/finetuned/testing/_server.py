"""The fake server itself."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import final

import grpc
from google.protobuf.message import Message

from finetuned.errors import FinetunedError, Unavailable
from finetuned.testing._adapters import FakeAdapters
from finetuned.testing._bases import FakeBases
from finetuned.testing._datasets import FakeDatasets
from finetuned.testing._faults import Fault, Faults, Gate
from finetuned.testing._serving import FakeServing
from finetuned.testing._store import Store, check_name, lookup
from finetuned.testing._tenants import FakeTenants
from finetuned.testing._tuning import FakeTuning
from finetuned.testing._versions import judge
from finetuned.v1.adapter_service_pb2_grpc import add_AdapterServiceServicer_to_server
from finetuned.v1.base_service_pb2_grpc import add_BaseServiceServicer_to_server
from finetuned.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from finetuned.v1.serving_service_pb2_grpc import add_ServingServiceServicer_to_server
from finetuned.v1.tenant_service_pb2_grpc import add_TenantServiceServicer_to_server
from finetuned.v1.tuning_service_pb2_grpc import add_TuningServiceServicer_to_server


@final
class FakeServer:
    """A gRPC server in this process that speaks the whole contract and learns nothing.

        with FakeServer() as server, Client(server.endpoint) as client:
            client.datasets.upload("rows.jsonl")
            job = client.train(dataset="rows", adapter="mine")
            client.jobs.wait(job.name).check()
            assert client.generate("hello", adapter="mine").text == "[mine@1] hello"

    Everything is kept in memory and is the same in every run: clocks tick by themselves, jobs go on
    when they are looked at (each GetJob and each watched event is one step), and replies repeat the
    prompt. Its base generates, encodes and sees, so that every task trains; what a service refuses for its
    methods, rows, formats and names is refused, numbers other than LORA's rank are not looked at. It needs neither
    torch nor the service.

    Args:
        endpoint: where to listen; a free port of the loopback by default.
        api_key: refuses calls without this key; None takes all.
        tls: private key and certificate chain in PEM; None is a server without TLS.
    """

    def __init__(
        self,
        endpoint: str = "127.0.0.1:0",
        *,
        api_key: str | None = None,
        tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._store = Store()
        self._faults = Faults()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=8), interceptors=[Gate(self._faults, api_key)]
        )
        add_TuningServiceServicer_to_server(FakeTuning(self._store), self._server)
        add_ServingServiceServicer_to_server(FakeServing(self._store), self._server)
        add_DatasetServiceServicer_to_server(FakeDatasets(self._store), self._server)
        add_AdapterServiceServicer_to_server(FakeAdapters(self._store), self._server)
        add_BaseServiceServicer_to_server(FakeBases(self._store), self._server)
        add_TenantServiceServicer_to_server(FakeTenants(self._store), self._server)
        if tls is None:
            port = self._server.add_insecure_port(endpoint)
        else:
            port = self._server.add_secure_port(endpoint, grpc.ssl_server_credentials([tls]))
        self.endpoint: str = f"{endpoint.rpartition(':')[0]}:{port}"

    def fail(
        self,
        rpc: str,
        error: FinetunedError | None = None,
        *,
        times: int = 1,
        after_messages: int = 0,
    ) -> None:
        """Let the next calls of an RPC fail; further plans for it follow in order.

        Args:
            rpc: its name in the contract, for example "TrainJob".
            error: the refusal that is sent with all its details; None breaks the connection instead:
                UNAVAILABLE without details.
            times: how many calls fail.
            after_messages: in a stream, how many messages pass first.
        """
        fault = Fault(error or _broken(), times, broken=error is None, after_messages=after_messages)
        self._faults.plan(rpc, fault)

    def lose_answer(self, rpc: str, *, times: int = 1) -> None:
        """Let the next calls of an RPC be carried out, and the connection break before the answer."""
        self._faults.plan(rpc, Fault(_broken(), times, broken=True, after_answer=True))

    def fail_next_job(self, error: FinetunedError) -> None:
        """Let the next job that is started end FAILED with this error."""
        with self._store.lock:
            self._store.job_errors.append(error)

    def trim_events(self, job: str, first_kept: int) -> None:
        """Forget the events of a job before `first_kept`; the name is the full one."""
        check_name(job, "tenants/{}/jobs/{}")
        with self._store.lock:
            lookup(self._store.jobs, job).first_kept = first_kept

    def change_base(self, name: str) -> None:
        """Go on as a server that was started again with another base; what was made for other bases stays and
        is INCOMPATIBLE. The name is the full one, `bases/fake` is the first.
        """
        check_name(name, "(?:tenants/{}/)?bases/{}")
        with self._store.lock:
            known = self._store.bases.get(name)
            digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
            self._store.hold(name, digest if known is None else known.digest)
            for state in self._store.adapters.values():
                for version in state.versions.values():
                    judge(self._store, version)

    def calls(self, rpc: str) -> int:
        """How often an RPC was called, with the calls that failed."""
        return len(self._faults.requests(rpc))

    def requests(self, rpc: str) -> list[list[Message]]:
        """The messages of every call of an RPC, as they came."""
        return self._faults.requests(rpc)

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()


def _broken() -> Unavailable:
    return Unavailable("the connection broke")
