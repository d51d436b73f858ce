"""Files as the messages of a client stream, from any offset on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, final

from finetuned._calls.call import new_request_id
from finetuned.v1 import adapter_service_pb2 as adapter_pb
from finetuned.v1 import dataset_service_pb2 as dataset_pb
from finetuned.values.datasets import UploadProgress

CHUNK_BYTES = 256 * 1024
"""A quarter of what the service takes: small enough for a lively progress bar on a slow line."""

ReportProgress: TypeAlias = Callable[[UploadProgress], None]


def chunks(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) pairs of a file from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK_BYTES):
            yield offset, data
            offset += len(data)


@final
@dataclass(frozen=True, slots=True)
class DatasetFile:
    """One upload; its ids stay the same over all attempts, so that the service knows it again."""

    path: Path
    parent: str
    dataset_id: str
    file_format: str
    columns: Mapping[str, str]
    progress: ReportProgress | None
    upload_id: str = field(default_factory=new_request_id)
    request_id: str = field(default_factory=new_request_id)
    size_bytes: int = field(init=False)
    sha256: bytes = field(init=False)

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            object.__setattr__(self, "size_bytes", file.tell())
        object.__setattr__(self, "sha256", digest)

    def messages(self, offset: int) -> Iterator[dataset_pb.UploadDatasetRequest]:
        yield dataset_pb.UploadDatasetRequest(
            start=dataset_pb.UploadStart(
                parent=self.parent,
                dataset_id=self.dataset_id,
                upload_id=self.upload_id,
                format=self.file_format,
                columns=self.columns,
                request_id=self.request_id,
            )
        )
        for position, data in chunks(self.path, offset):
            yield dataset_pb.UploadDatasetRequest(chunk=dataset_pb.UploadChunk(offset=position, data=data))
            if self.progress is not None:
                self.progress(UploadProgress(position + len(data), self.size_bytes))
        yield dataset_pb.UploadDatasetRequest(
            finish=dataset_pb.UploadFinish(size_bytes=self.size_bytes, sha256=self.sha256)
        )


@final
@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """One import of an adapter's files; it has no memory on the server and always starts again."""

    start: adapter_pb.ImportAdapterStart
    files: tuple[Path, ...]

    def messages(self, offset: int) -> Iterator[adapter_pb.ImportAdapterRequest]:
        del offset  # always 0 for a call without committed_bytes
        yield adapter_pb.ImportAdapterRequest(start=self.start)
        for path in self.files:
            for position, data in chunks(path):
                yield adapter_pb.ImportAdapterRequest(
                    chunk=adapter_pb.AdapterFileChunk(file_name=path.name, offset=position, data=data)
                )
        yield adapter_pb.ImportAdapterRequest(finish=adapter_pb.ImportAdapterFinish())
