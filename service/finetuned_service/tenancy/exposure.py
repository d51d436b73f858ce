"""What may be reached from other machines, and only how: checked before anything listens."""

from __future__ import annotations

import ipaddress

from finetuned_service.errors import StartRefused
from finetuned_service.settings import Settings
from finetuned_service.telemetry.logs import logger

_LOG = logger("tenancy")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `host:port`; a name other than localhost is taken for reachable."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_exposed(settings: Settings, *, keys: bool) -> None:
    """Refuse to open the API beyond this machine without TLS and API keys.

    Args:
        settings: the server's.
        keys: whether calls must carry a key.

    Raises:
        StartRefused: naming what is missing, unless `insecure` is set: then it is logged.
    """
    for name, address in (("health", settings.health_address), ("metrics", settings.metrics_address)):
        if not is_loopback(address):
            _LOG.info("open_without_credentials", port=name, address=address)
    if is_loopback(settings.listen_address):
        return
    missing: list[str] = []
    if settings.tls_certificate_file is None:
        missing.append("TLS certificate (tls_certificate_file, tls_key_file)")
    if not keys:
        missing.append("API keys ('finetuned keys create --tenant NAME')")
    if not missing:
        return
    if not settings.insecure:
        raise StartRefused(
            f"listen_address {settings.listen_address} can be reached from other machines, and there is no "
            f"{' and no '.join(missing)}. Add what is missing, listen on 127.0.0.1, or, where something else "
            "guards the port, say so with --insecure"
        )
    _LOG.warning(
        "insecure",
        address=settings.listen_address,
        tls=settings.tls_certificate_file is not None,
        keys=keys,
        meaning="whoever reaches the port "
        + ("reads and changes what every tenant has" if not keys else "may read what passes, keys included"),
    )
