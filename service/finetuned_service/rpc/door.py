"""Who may come in, and how: what the API asks of callers, and what it shows them of itself."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.rpc.tls import ServerCertificate
from finetuned_service.settings import Settings
from finetuned_service.telemetry.logs import logger
from finetuned_service.tenancy.authenticator import Authenticator, Embedded
from finetuned_service.tenancy.exposure import refuse_exposed
from finetuned_service.tenancy.keys_file import KEYS_FILE, KeysFile

_LOG = logger("rpc")


@dataclass(frozen=True, slots=True)
class Door:
    """What `build_server` opens the API with."""

    authenticator: Authenticator
    certificate: ServerCertificate | None

    @classmethod
    def of_settings(cls, settings: Settings) -> Door:
        """Raises StartRefused: credentials that cannot be used, or an API open to others without them."""
        certificate = ServerCertificate.of_settings(settings)
        default = settings.data_dir / KEYS_FILE
        path = settings.keys_file or (default if default.exists() else None)
        keys = None if path is None else KeysFile(path)
        refuse_exposed(settings, keys=keys is not None)
        if keys is not None:
            (_LOG.info if keys.usable else _LOG.warning)("keys", file=str(path), usable=keys.usable)
        return cls(keys or Embedded(), certificate)
