"""The file of an upload in progress: it only grows, and one at a time writes or reads it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from finetuned_service.errors import InvalidUpload, NotFound, Unavailable
from finetuned_service.names import ResourceName
from finetuned_service.storage.files import refusing_full_disk, says_full_disk

_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class UploadFile:
    """Where the bytes of one upload are kept until it is finished."""

    name: ResourceName
    path: Path

    def begin(self) -> None:
        """An empty file, whatever a crash has left there."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(b"")

    def resume(self) -> None:
        """The file as it is."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.touch()

    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError as error:
            raise NotFound.resource(str(self.name)) from error

    def append(
        self, offset: int, data: bytes, max_bytes: int, room: AbstractContextManager[None] | None = None
    ) -> int:
        """Add a chunk that begins at the end; returns the new size.

        `room` is entered for the writing alone, when everything else is found right; it may refuse. Inside
        `held`, as everybody takes the two locks in that order.

        Raises:
            InvalidUpload: for another offset (a repeated chunk, a gap), or more than `max_bytes`.
            NotFound: the upload is finished.
            ResourceExhausted: the disk is full; the upload gives back its bytes, and may begin again.
        """
        with refusing_full_disk(), self.held() as file:
            committed = file.seek(0, os.SEEK_END)
            if offset != committed:
                raise InvalidUpload(
                    f"chunk offset is {offset}, expected {committed}: chunks come once and in order; go on at "
                    "the committed bytes that GetUpload tells",
                    metadata={"committed_bytes": str(committed)},
                )
            if committed + len(data) > max_bytes:
                raise InvalidUpload(
                    f"the upload would have {committed + len(data)} bytes; allowed: {max_bytes}",
                    metadata={"max_bytes": str(max_bytes)},
                )
            with room or nullcontext():
                try:
                    _write_all(file, data)
                except OSError as error:
                    with suppress(OSError):
                        # What fills the disk must not hold it for days: the upload begins again at 0.
                        file.truncate(0 if says_full_disk(error) else committed)
                    raise
            return committed + len(data)

    def sha256(self) -> bytes:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    @contextmanager
    def held(self) -> Generator[FileIO]:
        """Keep others from writing and finishing: a client that reconnects meets its own old stream.

        In a server calls wait for each other before they have a thread (`rpc/turns.py`); what is held here for long, is
        held by another process.

        Raises:
            NotFound: the upload is finished, perhaps while this one waited.
            Unavailable: it has been held for as long as this one may wait.
        """
        try:
            # Unbuffered: what could not be written must not be tried again when the file is closed.
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError as error:
            raise NotFound.resource(str(self.name)) from error
        with file:
            _lock(file)
            if os.fstat(file.fileno()).st_nlink == 0:
                raise NotFound.resource(str(self.name))
            yield file

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _lock(file: FileIO) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise Unavailable(
                    "another stream writes or finishes this upload; try again, it goes on at the offset that GetUpload "
                    "tells",
                    retry_after_seconds=_PATIENCE_SECONDS,
                ) from None
        time.sleep(_POLL_SECONDS)


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
