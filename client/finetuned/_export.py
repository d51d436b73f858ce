"""Writes the files of an exported adapter; a broken export leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final

from finetuned._calls.adapters import MANIFEST_FILE, REQUIRED_FILES
from finetuned.errors import AlreadyExists, Internal
from finetuned.v1.adapter_service_pb2 import ExportAdapterResponse
from finetuned.values.adapters import ExportedAdapter

_FILES = frozenset({*REQUIRED_FILES, MANIFEST_FILE})


@final
class ExportDirectory:
    """Collects chunks in a temporary directory beside `directory` and renames it when all are there.

    Raises:
        AlreadyExists: `directory` exists and is not empty.
    """

    def __init__(self, directory: str | Path) -> None:
        self._final = Path(directory).resolve()
        if self._final.exists() and any(self._final.iterdir()):
            raise AlreadyExists(f"{self._final} is not empty; name a new or empty directory")
        self._final.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(prefix=f".{self._final.name}-", dir=self._final.parent))
        self._written: dict[str, int] = {}
        self._version = ""

    def write(self, answer: ExportAdapterResponse) -> None:
        chunk = answer.chunk
        # The names come from the network; joined unchecked, one could point outside the directory.
        if chunk.file_name not in _FILES or chunk.offset != self._written.get(chunk.file_name, 0):
            raise Internal(f"the export has an unexpected chunk: {chunk.file_name!r} at {chunk.offset}")
        with (self._partial / chunk.file_name).open("ab") as file:
            file.write(chunk.data)
        self._written[chunk.file_name] = chunk.offset + len(chunk.data)
        self._version = answer.version

    def publish(self) -> ExportedAdapter:
        missing = [name for name in REQUIRED_FILES if name not in self._written]
        if missing:
            raise Internal(f"the export ended without {' and '.join(missing)}")
        self._partial.chmod(0o755)
        if self._final.exists():
            self._final.rmdir()
        self._partial.rename(self._final)
        return ExportedAdapter(self._version, str(self._final), tuple(sorted(self._written)))

    def __enter__(self) -> ExportDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)
