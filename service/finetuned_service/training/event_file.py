"""One event file of TensorBoard, written where it is asked for: each event is in the file, or raises why not.

tensorboardX writes in a thread of its own, which ends at the first error; whoever adds events then waits for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

_messages: Any = event_pb2  # made as it is imported, without types
_VERSION = "brain.Event:2"


class EventFile:
    """A new file in `directory`, which is made if it is not there.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Files are named by the second; two attempts may begin in one.
        own = f"{socket.gethostname()}.{os.getpid()}-{time.monotonic_ns()}"
        path = directory / f"events.out.tfevents.{int(time.time())}.{own}"
        # Unbuffered: who reads while the job runs sees all, and nothing waits for the end to fail.
        self._file = path.open("xb", buffering=0)
        self._write(_messages.Event(file_version=_VERSION))

    def start_at(self, step: int) -> None:
        """Take back what files before this one say of `step` and of later ones."""
        start = _messages.SessionLog(status=_messages.SessionLog.START)
        self._write(_messages.Event(step=step, session_log=start))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a figure.

        Raises:
            OSError: there is no room; the file is as it was before.
        """
        self._write(_messages.Event(step=step, summary=scalar(tag, value)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        whole_bytes = self._file.tell()
        rest = memoryview(_record(event.SerializeToString()))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(whole_bytes)
                self._file.seek(whole_bytes)
            raise

    def close(self) -> None:
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
