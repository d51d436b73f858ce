"""Both clients, the command line and certificates against a real server with TLS and keys."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from both_clients import open_client
from finetuned import Client, RetryPolicy
from finetuned.errors import NotFound, Unauthenticated, Unavailable
from server.credentials import GuardedServer, guarded, make_key, refused, write_certificate

ONCE = RetryPolicy(attempts=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    with guarded(tmp_path_factory.mktemp("tls")) as found:
        yield found


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_client_with_key_and_authority_does_what_it_does_without(
    server: GuardedServer, kind: str, tmp_rows: Path
) -> None:
    given = {"ca": server.ca, "api_key": server.keys["acme"], "tenant": "acme"}
    with open_client(kind, server.endpoint, **given) as client:
        client.datasets.upload(tmp_rows, kind)  # a stream of requests, over a channel of its own
        assert [dataset.name for dataset in client.datasets.list()] == [f"tenants/acme/datasets/{kind}"]
        assert client.generate("hello", plain_base=True, max_tokens=2).text is not None
        client.datasets.delete(kind)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_client_is_told_what_is_wrong(server: GuardedServer, kind: str) -> None:
    with open_client(kind, server.endpoint, ca=server.ca, tenant="acme") as client:
        with pytest.raises(Unauthenticated, match="FINETUNED_API_KEY") as caught:
            client.server_info()
        assert caught.value.reason == "UNAUTHENTICATED"
        with pytest.raises(Unauthenticated):
            list(client.datasets.list())
    key = server.keys["beta"]
    with open_client(kind, server.endpoint, ca=server.ca, api_key=key, tenant="acme") as client:
        with pytest.raises(NotFound, match="'tenants/acme' does not exist or is not yours"):
            list(client.datasets.list())
        with pytest.raises(NotFound):
            client.generate("hello", plain_base=True)


def test_plaintext_and_strange_authorities_get_no_answer(server: GuardedServer, tmp_path: Path) -> None:
    with Client(server.endpoint, retry=ONCE) as plain, pytest.raises(Unavailable):
        plain.server_info()
    strange = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(strange)
    with Client(server.endpoint, ca=strange, retry=ONCE) as other, pytest.raises(Unavailable):
        other.server_info()


def test_key_reaches_a_server_with_keys_and_without_tls_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around a proxy of the environment, which would read it: here it would not even answer."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    without = {"tls_certificate_file": None, "tls_key_file": None}
    with guarded(tmp_path, **without) as found:
        for kind in ("sync", "async"):
            key = found.keys["acme"]
            with open_client(kind, found.endpoint, api_key=key, tenant="acme", retry=ONCE) as client:
                assert client.server_info().base.name == "bases/tiny"
            with open_client(kind, found.endpoint, retry=ONCE) as client, pytest.raises(Unauthenticated):
                client.server_info()


def test_command_line_reads_key_and_authority_from_the_environment(server: GuardedServer) -> None:
    def finetuned(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from finetuned.cli import main; main()", "dataset", "list", "--json"],
            env={"FINETUNED_ENDPOINT": server.endpoint, "FINETUNED_TENANT": "acme", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    known = {"FINETUNED_CA": str(server.ca), "FINETUNED_API_KEY": server.keys["acme"]}
    assert json.loads(finetuned(**known).stdout) == []
    stranger = finetuned(FINETUNED_CA=str(server.ca))
    assert stranger.returncode == 7
    assert "UNAUTHENTICATED" in stranger.stderr


def test_certificate_is_replaced_while_the_server_runs(tmp_path: Path) -> None:
    with guarded(tmp_path) as found:
        key = found.keys["acme"]

        def answers(authority: Path) -> bool:
            # A channel of its own each time: only a handshake asks for the certificate.
            options = [("grpc.use_local_subchannel_pool", 1)]
            tls = grpc.composite_channel_credentials(
                grpc.ssl_channel_credentials(authority.read_bytes()), grpc.access_token_call_credentials(key)
            )
            with grpc.secure_channel(found.endpoint, tls, options=options) as channel:
                call = channel.unary_unary("/finetuned.v1.ServingService/GetServerInfo")
                refusal = refused(lambda: call(b""))
            assert refusal is None or refusal.code == "UNAVAILABLE"
            return refusal is None

        assert answers(found.ca)
        renewed = trustme.CA()
        renewed.cert_pem.write_to_path(tmp_path / "renewed.pem")
        assert not answers(tmp_path / "renewed.pem")
        (tmp_path / "server.key").write_text("half a k")
        assert answers(found.ca), "a key that does not fit has taken the place of one that does"
        write_certificate(renewed, tmp_path)
        assert answers(tmp_path / "renewed.pem")
        assert not answers(found.ca)


def test_start_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """As an operator sees it: the process ends before it fetches or opens anything."""

    def serve(*flags: str) -> str:
        command = [sys.executable, "-m", "finetuned_service", "serve", "--data-dir", str(tmp_path / "data")]
        ended = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        return ended.stderr.strip().splitlines()[-1]

    beyond = ("--listen-address", "0.0.0.0:0")
    assert "no TLS certificate" in serve(*beyond)
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": [{"id": 1}]}')
    assert f"keys file {keys} is malformed: keys.0.id" in serve("--keys-file", str(keys))
    made = make_key("acme")[1].model_dump_json()
    keys.write_text(f'{{"keys": [{made}]}}')
    assert "and there is no TLS certificate" in serve(*beyond, "--keys-file", str(keys))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock"]
