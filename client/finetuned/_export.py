"""Writes files that a stream brings; one that breaks leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, final

from finetuned._calls.adapters import MANIFEST_FILE, REQUIRED_FILES
from finetuned.errors import AlreadyExists, Internal
from finetuned.v1.adapter_service_pb2 import ExportAdapterResponse
from finetuned.v1.tuning_service_pb2 import ExportTensorBoardResponse
from finetuned.values.adapters import ExportedAdapter
from finetuned.values.jobs import ExportedLogs

_ADAPTER_FILES = frozenset({*REQUIRED_FILES, MANIFEST_FILE})
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.[\w-]+")


@final
class _Partial:
    """A temporary directory beside the place where its files will be; made with the first of them, so that what is
    refused leaves nothing.
    """

    def __init__(self, place: Path, expected: Callable[[str], object]) -> None:
        self._place, self._expected = place, expected
        self.written: dict[str, int] = {}
        """Bytes by file name."""

    @cached_property
    def directory(self) -> Path:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{self._place.name}-", dir=self._place.parent))

    def write(self, file_name: str, offset: int, data: bytes) -> None:
        # The names come from the network; joined unchecked, one could point outside the directory.
        if not self._expected(file_name) or offset != self.written.get(file_name, 0):
            raise Internal(f"the export has an unexpected chunk: {file_name!r} at {offset}")
        with (self.directory / file_name).open("ab") as file:
            file.write(data)
        self.written[file_name] = offset + len(data)

    def remove(self) -> None:
        if self.written:
            shutil.rmtree(self.directory, ignore_errors=True)


@final
class ExportDirectory:
    """Collects the files of an adapter, and renames their directory when all are there.

    Raises:
        AlreadyExists: `directory` exists and is not empty.
    """

    def __init__(self, directory: str | Path) -> None:
        self._final = Path(directory).resolve()
        if self._final.exists() and any(self._final.iterdir()):
            raise AlreadyExists(f"{self._final} is not empty; name a new or empty directory")
        self._partial = _Partial(self._final, _ADAPTER_FILES.__contains__)
        self._version = ""

    def write(self, answer: ExportAdapterResponse) -> None:
        self._partial.write(answer.chunk.file_name, answer.chunk.offset, answer.chunk.data)
        self._version = answer.version

    def publish(self) -> ExportedAdapter:
        written = self._partial.written
        missing = [name for name in REQUIRED_FILES if name not in written]
        if missing:
            raise Internal(f"the export ended without {' and '.join(missing)}")
        self._partial.directory.chmod(0o755)
        if self._final.exists():
            self._final.rmdir()
        self._partial.directory.rename(self._final)
        return ExportedAdapter(self._version, str(self._final), tuple(sorted(written)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._partial.remove()


@final
class LogDirectory:
    """Collects the event files of a job; when all are there, each takes the place of its older self.

    They go into a directory of the job's own under `directory`: TensorBoard takes what lies in one for one run.
    """

    def __init__(self, directory: str | Path, job: str) -> None:
        """Args: job: full name."""
        self._job = job
        self._final = Path(directory).resolve() / job.rpartition("/")[2]
        self._partial = _Partial(self._final, _EVENT_FILE.fullmatch)

    def write(self, answer: ExportTensorBoardResponse) -> None:
        self._partial.write(answer.file_name, answer.offset, answer.data)

    def publish(self) -> ExportedLogs:
        self._final.mkdir(parents=True, exist_ok=True)
        files = tuple(sorted(self._partial.written))
        for name in files:
            (self._partial.directory / name).replace(self._final / name)
        return ExportedLogs(self._job, str(self._final), files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._partial.remove()
