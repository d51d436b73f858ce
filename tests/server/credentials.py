"""A server with TLS and API keys, and what two tenants have on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import trustme
from finetuned import Client
from finetuned.v1 import dataset_service_pb2
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceStub
from finetuned_service.tenancy.caller import Role
from finetuned_service.tenancy.keys import ApiKey, ApiKeys, new_key
from server.test_adapters_served import imported
from tiny_server import TINY, TinyServer, make_data_directory, running

HOSTS = ("localhost", "127.0.0.1")


def write_certificate(authority: trustme.CA, directory: Path, **issued: Any) -> tuple[Path, Path]:
    """The certificate and the key of a server on this machine."""
    made = authority.issue_cert(*HOSTS, **issued)
    certificate, key = directory / "server.pem", directory / "server.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(key)
    return certificate, key


def make_key(tenant: str, role: Role = Role.USER, expire_time: datetime | None = None) -> tuple[str, ApiKey]:
    return new_key(tenant, role, now=datetime(2026, 1, 1, tzinfo=UTC), expire_time=expire_time, note="")


@dataclass(frozen=True, slots=True)
class GuardedServer:
    """A server that asks for keys, and the keys."""

    server: TinyServer
    ca: Path
    keys_file: Path
    keys: Mapping[str, str]
    """acme, beta: users of these tenants; admin: of the tenant ops; expired, deleted: refused ones."""

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def client(self, who: str, tenant: str | None = None) -> Client:
        return Client(self.endpoint, ca=self.ca, api_key=self.keys[who], tenant=tenant or who)

    @contextmanager
    def channel(self, key: str | None = None) -> Iterator[grpc.Channel]:
        """With TLS, and the key on every call."""
        tls = grpc.ssl_channel_credentials(self.ca.read_bytes())
        if key is not None:
            tls = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(key))
        with grpc.secure_channel(self.endpoint, tls) as found:
            yield found


@contextmanager
def guarded(directory: Path, **overrides: Any) -> Iterator[GuardedServer]:
    """Serve with a certificate of an authority that exists in this test only."""
    make_data_directory(directory)
    shutil.copytree(directory / "data/bases" / TINY, directory / "data/tenants/acme/bases/have")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate, key = write_certificate(authority, directory)
    made = {
        "acme": make_key("acme"),
        "beta": make_key("beta"),
        "admin": make_key("ops", Role.ADMIN),
        "expired": make_key("acme", expire_time=datetime(2026, 2, 1, tzinfo=UTC)),
        "deleted": make_key("past"),
    }
    keys = ApiKeys(
        keys=tuple(key for _, key in made.values()),
        deleted_tenants={"past": datetime(2026, 3, 1, tzinfo=UTC)},
    )
    keys_file = directory / "keys.json"
    keys_file.write_text(keys.model_dump_json())
    settings = {"tls_certificate_file": certificate, "tls_key_file": key, "keys_file": keys_file}
    with running(directory / "data", **{"run_jobs": False, **settings, **overrides}) as server:
        texts = {who: text for who, (text, _) in made.items()}
        yield GuardedServer(server, directory / "ca.pem", keys_file, texts)


def fill(guarded_server: GuardedServer, directory: Path) -> str:
    """Give acme one of everything, named `have`; returns the id of its job, which the server chooses."""
    rows = directory / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    with (
        guarded_server.client("acme") as client,
        guarded_server.channel(guarded_server.keys["acme"]) as channel,
    ):
        client.datasets.upload(rows, "have")
        imported(client, guarded_server.server, directory / "adapter", "have", seed=61)
        start = dataset_service_pb2.UploadStart(
            parent="tenants/acme",
            dataset_id="later",
            upload_id="have",
            format=dataset_service_pb2.DATASET_FORMAT_JSONL,
        )
        begun = dataset_service_pb2.UploadDatasetRequest(start=start)
        with suppress(grpc.RpcError):  # a stream without its end leaves the upload waiting, as is wanted
            DatasetServiceStub(channel).UploadDataset(iter([begun]))
        return client.quantize("INT8", "made").name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC as reflection tells it."""

    service: str
    name: str
    sends_stream: bool
    answers_stream: bool

    def call(self, channel: grpc.Channel, request: bytes, **options: Any) -> Any:
        """Send one message and read the answer to its end."""
        path = f"/{self.service}/{self.name}"
        match self.sends_stream, self.answers_stream:
            case False, False:
                return channel.unary_unary(path)(request, **options)
            case False, True:
                return list(channel.unary_stream(path)(request, **options))
            case True, False:
                return channel.stream_unary(path)(iter([request]), **options)
            case _:
                return list(channel.stream_stream(path)(iter([request]), **options))


@dataclass(frozen=True, slots=True)
class Refused:
    """All that a refused caller can see."""

    code: str
    message: str
    trailers: tuple[tuple[str, bytes], ...]

    def without(self, name: str) -> Refused:
        """As it would be for any other name of that length."""
        blank = "?" * len(name)
        return Refused(
            self.code,
            self.message.replace(name, blank),
            tuple((key, value.replace(name.encode(), blank.encode())) for key, value in self.trailers),
        )


def refused(call: Callable[[], Any]) -> Refused | None:
    """The refusal, or None for an answer."""
    try:
        call()
    except grpc.RpcError as error:
        ended = cast("grpc.Call", error)
        trailers = [
            (key, value if isinstance(value, bytes) else value.encode())
            for key, value in ended.trailing_metadata() or ()
        ]
        return Refused(ended.code().name, ended.details() or "", tuple(sorted(trailers)))
    return None
