"""Certificates that are refused at start, and what may be opened beyond loopback."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from finetuned_service.errors import StartRefused
from finetuned_service.rpc.door import Door
from finetuned_service.rpc.tls import ServerCertificate
from finetuned_service.settings import Settings
from finetuned_service.tenancy.authenticator import Embedded
from finetuned_service.tenancy.exposure import is_loopback
from server.credentials import make_key, write_certificate
from structlog.testing import capture_logs


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_expired_certificate_is_refused_with_its_dates(authority: trustme.CA, tmp_path: Path) -> None:
    end = datetime(2026, 1, 1, tzinfo=UTC)
    files = write_certificate(authority, tmp_path, not_after=end)
    with pytest.raises(StartRefused, match=r"valid from .* to 2026-01-01.*put a valid one in its place"):
        ServerCertificate(*files, now=lambda: end)
    found = ServerCertificate(*files, now=lambda: end - timedelta(seconds=1))
    assert found.expire_time == end


def test_certificate_of_the_future_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    begin = datetime.now(UTC) + timedelta(days=10)
    files = write_certificate(authority, tmp_path, not_before=begin)
    with pytest.raises(StartRefused, match="set the clock"):
        ServerCertificate(*files)


def test_key_of_another_certificate_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, _ = write_certificate(authority, tmp_path)
    _, key = write_certificate(authority, tmp_path / "other")
    with pytest.raises(StartRefused, match="is not the key of"):
        ServerCertificate(certificate, key)


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (b"", None, "holds no certificate in PEM"),
        (b"\x30\x82", None, "holds no certificate in PEM"),
        (None, b"-----BEGIN PRIVATE KEY-----\n", "holds no private key in PEM"),
    ],
)
def test_file_without_what_it_should_hold_is_refused(
    authority: trustme.CA, tmp_path: Path, certificate: bytes | None, key: bytes | None, said: str
) -> None:
    files = write_certificate(authority, tmp_path)
    for file, content in zip(files, (certificate, key), strict=True):
        if content is not None:
            file.write_bytes(content)
    with pytest.raises(StartRefused, match=said):
        ServerCertificate(*files)


def test_key_with_a_password_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    private = load_pem_private_key(key.read_bytes(), None)
    form = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    key.write_bytes(private.private_bytes(*form))
    with pytest.raises(StartRefused, match="with a password; give one without"):
        ServerCertificate(certificate, key)


def test_missing_file_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    key.unlink()
    with pytest.raises(StartRefused, match=r"server\.key.*cannot be read: No such file"):
        ServerCertificate(certificate, key)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("server:1", False),
    ],
)
def test_what_only_this_machine_reaches(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


def door(tmp_path: Path, **settings: Any) -> Door:
    return Door.of_settings(Settings(data_dir=tmp_path, **settings))


def guarded(authority: trustme.CA, directory: Path, *, tls: bool, keys: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"listen_address": "0.0.0.0:8433"}
    if tls:
        certificate, key = write_certificate(authority, directory)
        settings |= {"tls_certificate_file": certificate, "tls_key_file": key}
    if keys:
        (directory / "keys.json").write_text(f'{{"keys": [{make_key("acme")[1].model_dump_json()}]}}')
    return settings


def test_loopback_asks_for_nothing(tmp_path: Path) -> None:
    found = door(tmp_path)
    assert isinstance(found.authenticator, Embedded)
    assert found.certificate is None


@pytest.mark.parametrize(
    ("tls", "keys", "missing"),
    [
        (False, False, ["TLS certificate", "API keys"]),
        (True, False, ["API keys"]),
        (False, True, ["TLS certificate"]),
    ],
)
def test_open_to_others_without_credentials_is_refused(
    authority: trustme.CA, tmp_path: Path, *, tls: bool, keys: bool, missing: list[str]
) -> None:
    settings = guarded(authority, tmp_path, tls=tls, keys=keys)
    with pytest.raises(StartRefused) as caught:
        door(tmp_path, **settings)
    message = caught.value.message
    assert [word for word in ("TLS certificate", "API keys") if word in message] == missing
    assert "0.0.0.0:8433" in message
    assert "127.0.0.1" in message
    assert "--insecure" in message
    with capture_logs() as logged:
        door(tmp_path, **settings, insecure=True)
    told = next(line for line in logged if line["event"] == "insecure")
    assert (told["log_level"], told["tls"], told["keys"]) == ("warning", tls, keys)


def test_open_to_others_with_credentials_is_fine(authority: trustme.CA, tmp_path: Path) -> None:
    with capture_logs() as logged:
        found = door(tmp_path, **guarded(authority, tmp_path, tls=True, keys=True))
    assert found.certificate is not None
    assert not isinstance(found.authenticator, Embedded)
    assert [line["event"] for line in logged] == ["keys"]


def test_keys_file_without_a_key_refuses_all_instead_of_none(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with capture_logs() as logged:
        assert not isinstance(door(tmp_path).authenticator, Embedded)
    assert [(line["event"], line["log_level"], line["usable"]) for line in logged] == [("keys", "warning", 0)]


def test_health_and_metrics_beyond_loopback_are_told(tmp_path: Path) -> None:
    with capture_logs() as logged:
        door(tmp_path, health_address="0.0.0.0:1", metrics_address="0.0.0.0:2")
    assert [line["port"] for line in logged] == ["health", "metrics"]


@pytest.mark.parametrize("name", ["tls_certificate_file", "tls_key_file"])
def test_half_of_tls_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartRefused, match=f"{name} is set"):
        door(tmp_path, **{name: tmp_path / "x.pem"})


def test_keys_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be read"):
        door(tmp_path, keys_file=tmp_path / "none.json")
