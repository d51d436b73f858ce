"""The server's certificate: checked at start, and read again when its files change.

gRPC asks before every handshake whether there is another; connections that are open keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from finetuned_service.errors import FinetunedError, StartRefused
from finetuned_service.settings import Settings
from finetuned_service.telemetry.logs import logger

_LOG = logger("rpc")


class ServerCertificate:
    """A certificate chain and its private key, PEM, as files that may be replaced (cert-manager does)."""

    def __init__(
        self, certificate: Path, key: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Raises StartRefused: the files cannot be used."""
        self._files = (certificate, key)
        self._now = now
        self._content = self._read()
        self.expire_time = self._check(*self._content)

    @classmethod
    def of_settings(cls, settings: Settings) -> ServerCertificate | None:
        """None where the settings ask for no TLS.

        Raises:
            StartRefused: only one of the two files is named, or they cannot be used.
        """
        match settings.tls_certificate_file, settings.tls_key_file:
            case None, None:
                return None
            case Path() as certificate, Path() as key:
                return cls(certificate, key)
            case certificate, _:
                named, other = "tls_certificate_file", "tls_key_file"
                if certificate is None:
                    named, other = other, named
                raise StartRefused(f"{named} is set and {other} is not; TLS needs both, set it too")

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of a gRPC server."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._renewed,  # pyright: ignore[reportArgumentType]  # None is "no change"; the stubs lack it
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key = self._content
        return grpc.ssl_server_certificate_configuration([(key, chain)])

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before a handshake; files that cannot be used leave the certificate as it was."""
        try:
            found = self._read()
            if found == self._content:
                return None
            self.expire_time = self._check(*found)
        except FinetunedError as error:
            _LOG.error(
                "certificate_not_reloaded", problem=error.message, expires=self.expire_time.isoformat()
            )
            return None
        self._content = found
        _LOG.info("certificate_reloaded", expires=self.expire_time.isoformat())
        return self._configuration()

    def _read(self) -> tuple[bytes, bytes]:
        chain, key = (_bytes_of(file) for file in self._files)
        return chain, key

    def _check(self, chain: bytes, key: bytes) -> datetime:
        """When the server's own certificate, the first of the chain, expires."""
        certificate_file, key_file = self._files
        try:
            certificate = x509.load_pem_x509_certificates(chain)[0]
        except ValueError as error:
            raise StartRefused(
                f"tls_certificate_file {certificate_file} holds no certificate in PEM; give the server's own, "
                "then those of its authorities"
            ) from error
        try:
            private = load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StartRefused(
                f"tls_key_file {key_file} holds no private key in PEM, or one with a password; give one without"
            ) from error
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise StartRefused(
                f"tls_key_file {key_file} is not the key of tls_certificate_file {certificate_file}; give the two "
                "that were made together"
            )
        now, begin, end = self._now(), certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= now < end:
            raise StartRefused(
                f"tls_certificate_file {certificate_file} is valid from {begin.isoformat()} to {end.isoformat()}, "
                f"and now is {now.isoformat(timespec='seconds')}; put a valid one in its place, or set the clock"
            )
        return end


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartRefused(
            f"{file} of the TLS settings cannot be read: {error.strerror}; give a file that the server may read"
        ) from error
