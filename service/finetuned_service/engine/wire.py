"""How messages cross the socket between the RPC process and the engine process.

A frame is its length (8 bytes, little endian) and a pickled tuple of messages. Pickle is safe here: the
socket is an anonymous pair between a process and the child it started. Torch-free.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")


def encode(message: object) -> bytes:
    """One frame."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def receive(source: socket.socket) -> Any:
    """The next message; blocks.

    Raises:
        EOFError: if the other side is gone.
    """
    (length,) = _LENGTH.unpack(_receive_exactly(source, _LENGTH.size))
    return pickle.loads(_receive_exactly(source, length))  # noqa: S301 - see above


async def receive_async(source: asyncio.StreamReader) -> Any:
    """The next message.

    Raises:
        EOFError: if the other side is gone.
    """
    try:
        (length,) = _LENGTH.unpack(await source.readexactly(_LENGTH.size))
        return pickle.loads(await source.readexactly(length))  # noqa: S301 - see above
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error


def _receive_exactly(source: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        try:
            part = source.recv(min(length - len(received), 1 << 20))
        except ConnectionError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        received += part
    return bytes(received)
