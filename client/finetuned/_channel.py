"""How a connection is set up; shared by both clients."""

from __future__ import annotations

import re
from typing import Final

import grpc
from google.protobuf.message import Message

from finetuned.errors import InvalidField
from finetuned.settings import Settings

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A thousand replies in one batch may exceed gRPC's own 4 MiB."""

OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.primary_user_agent", "finetuned-python"),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # The default waits a second before it looks again for a server that was not there, longer than
    # our own first retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


_PLAIN_LOOPBACK: Final = re.compile(
    r"(?:dns:(?://[^/]*)?/?)?(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?|unix(?:-abstract)?:.*"
    r"|ipv4:127(?:\.\d{1,3}){3}(?::\d+)?|ipv6:\[::1\](?::\d+)?"
)
"""Targets that only this machine reaches (https://github.com/grpc/grpc/blob/master/doc/naming.md)."""


def options(settings: Settings) -> list[tuple[str, str | int]]:
    """A loopback is reached directly: a proxy of the environment would read what is not encrypted."""
    direct = [("grpc.enable_http_proxy", 0)] if not settings.tls and _is_loopback(settings) else []
    return [*OPTIONS, *direct]


def _is_loopback(settings: Settings) -> bool:
    return _PLAIN_LOOPBACK.fullmatch(settings.target) is not None


def credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """None for a connection without TLS.

    Raises:
        OSError: the file of the certificate authority cannot be read.
    """
    if not settings.tls:
        return None
    return grpc.ssl_channel_credentials(settings.ca.read_bytes() if settings.ca is not None else None)


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    """What goes with every call.

    Raises:
        InvalidField: the key would go over a network without encryption.
    """
    if settings.api_key is None:
        return ()
    if not settings.tls and not _is_loopback(settings):
        raise InvalidField.one(
            "endpoint",
            f"is {settings.endpoint!r}, without TLS and not on this machine: an API key is never sent there. Use "
            "https://…, or set FINETUNED_CA to the server's authority; behind a tunnel or a sidecar use localhost",
        )
    return (("authorization", f"Bearer {settings.api_key.get_secret_value()}"),)


def serialize(message: Message) -> bytes:
    return message.SerializeToString()
