"""How a connection is set up; shared by both clients."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import Message

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


def credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """None for a connection without TLS.

    Raises:
        OSError: the file of the certificate authority cannot be read.
    """
    if not settings.tls:
        return None
    return grpc.ssl_channel_credentials(settings.ca.read_bytes() if settings.ca is not None else None)


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    if settings.api_key is None:
        return ()
    return (("authorization", f"Bearer {settings.api_key.get_secret_value()}"),)


def serialize(message: Message) -> bytes:
    return message.SerializeToString()
