"""Where the client finds its server, who it says it is, and TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned import AsyncClient, Client, RetryPolicy, Settings
from finetuned._channel import metadata
from finetuned.errors import InvalidField, Unavailable
from finetuned.settings import settings_of
from finetuned.testing import FakeServer
from pydantic import ValidationError

# Of a server that exists in this test only, for localhost, valid from 2020 to 2120.
PRIVATE_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgS55LgtfcDiKXWRIu
Pyp/grznA9FBwN1qgILwYVLU1HOhRANCAAST+PyPZ1u+9E+d5vpfu6AEMAPNceN5
nJxNMQbJ89Jx00k1IjPYY4pm7VNSl59abQncGr4z9lTxJb7SDK2hZNZ/
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBZjCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJP4/I9nW770T53m
+l+7oAQwA81x43mcnE0xBsnz0nHTSTUiM9hjimbtU1KXn1ptCdwavjP2VPElvtIM
raFk1n+jTjBMMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0RBBMwEYIJbG9jYWxob3N0
hwR/AAABMB0GA1UdDgQWBBTjdM9ey9aHfnMgn7UGUu6w/hd5+zAKBggqhkjOPQQD
AgNHADBEAiBuP7Oq1NQsLCLU1R+ZfmNRHwk0S+4VALKZnU1mKk1NhwIgLPTUEJ9p
KbKJPBpTDCqBd64biMBnjvoaLzwGOi6IvCI=
-----END CERTIFICATE-----
"""
VARIABLES = ("ENDPOINT", "TENANT", "API_KEY", "CA", "METRICS_URL")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"FINETUNED_{name}", raising=False)


def test_defaults() -> None:
    settings = Settings()
    assert settings.endpoint == "localhost:8433"
    assert settings.tenant == "default"
    assert settings.api_key is None
    assert settings.ca is None
    assert settings.metrics_url == "http://localhost:9464/metrics"
    assert not settings.tls


def test_the_environment_is_read_and_arguments_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNED_ENDPOINT", "there:1")
    monkeypatch.setenv("FINETUNED_TENANT", "acme")
    monkeypatch.setenv("FINETUNED_API_KEY", "secret")
    found = settings_of(endpoint=None, tenant="other", api_key=None, ca=None)
    assert (found.endpoint, found.tenant) == ("there:1", "other")
    assert found.api_key is not None
    assert found.api_key.get_secret_value() == "secret"
    assert "secret" not in repr(found)


def test_settings_of_the_service_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNED_DATA_DIR", "/data")
    assert Settings().tenant == "default"


def test_an_empty_tenant_is_refused() -> None:
    with pytest.raises(ValidationError, match="tenant"):
        Client(tenant="")


@pytest.mark.parametrize(
    ("endpoint", "target", "tls"),
    [
        ("host:1", "host:1", False),
        ("http://host:1", "host:1", False),
        ("https://host:1/", "host:1", True),
        ("unix:/run/finetuned.sock", "unix:/run/finetuned.sock", False),
    ],
)
def test_forms_of_an_endpoint(endpoint: str, target: str, *, tls: bool) -> None:
    settings = Settings(endpoint=endpoint)
    assert (settings.target, settings.tls) == (target, tls)


def test_tls_with_an_authority_of_our_own(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CERTIFICATE)
    tls = PRIVATE_KEY.encode(), CERTIFICATE.encode()
    once = RetryPolicy(attempts=1)
    with FakeServer("localhost:0", tls=tls) as server:
        with Client(server.endpoint, ca=ca) as client:
            assert client.server_info().device == "cpu"
        with Client(f"https://{server.endpoint}", retry=once) as stranger, pytest.raises(Unavailable):
            stranger.server_info()


def test_a_missing_authority_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client(ca=tmp_path / "none.pem")


@pytest.mark.parametrize(
    "endpoint",
    [
        *("localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "http://localhost:1", "dns:///localhost:1"),
        *("unix:/run/finetuned.sock", "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "https://there:1", "localhost"),
    ],
)
def test_a_key_goes_to_this_machine_or_through_tls(endpoint: str) -> None:
    sent = (("authorization", "Bearer secret"),)
    assert metadata(settings_of(endpoint=endpoint, tenant=None, api_key="secret", ca=None)) == sent


@pytest.mark.parametrize(
    "endpoint",
    [
        *("there:1", "10.0.0.1:1", "http://there:1", "localhost.there:1", "127.0.0.1.there:1", "[::2]:1"),
        *("dns:///there:1", "dns://127.0.0.1/there:1", "ipv4:10.0.0.1:1", "ipv4:127.0.0.1:1,10.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_key_is_never_sent_over_a_network_in_plaintext(
    client: type[Client | AsyncClient], endpoint: str
) -> None:
    with pytest.raises(InvalidField, match=r"endpoint: is .*never sent there.*FINETUNED_CA") as caught:
        client(endpoint, api_key="secret")
    assert "secret" not in caught.value.message


def test_a_server_without_keys_is_reached_in_plaintext() -> None:
    assert metadata(settings_of(endpoint="there:1", tenant=None, api_key=None, ca=None)) == ()
