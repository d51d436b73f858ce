"""DatasetService of the fake server: rows are checked for their form, and kept as counts and a digest."""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import final
from urllib.parse import urlsplit

import grpc

from finetuned.errors import (
    AlreadyExists,
    InvalidField,
    InvalidUpload,
    ResourceInUse,
)
from finetuned.testing._rows import Row, check_format, format_of, read_rows, report_of
from finetuned.testing._store import Store, Upload, check_name, lookup, page
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.v1 import job_pb2
from finetuned.v1.dataset_service_pb2_grpc import DatasetServiceServicer

_FINAL = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
_UPLOADS_KEPT = timedelta(days=7)


@final
class FakeDatasets(DatasetServiceServicer):
    def __init__(self, store: Store) -> None:
        self._store = store

    def UploadDataset(
        self, request_iterator: Iterator[pb.UploadDatasetRequest], context: grpc.ServicerContext
    ) -> pb.UploadDatasetResponse:
        first = next(request_iterator, pb.UploadDatasetRequest())
        if first.WhichOneof("step") != "start":
            raise InvalidUpload("the first message is not `start`")
        start = first.start
        tenant, _ = check_name(f"{start.parent}/uploads/{start.upload_id}", "tenants/{}/uploads/{}")
        check_name(start.dataset_id, "{}", "start.dataset_id")
        check_format(start.format)
        upload_name = f"tenants/{tenant}/uploads/{start.upload_id}"
        dataset_name = f"{start.parent}/datasets/{start.dataset_id}"
        with self._store.lock:
            upload = self._store.uploads.setdefault(upload_name, Upload(dataset_name))
        for message in request_iterator:
            if message.WhichOneof("step") == "chunk":
                self._append(upload, message.chunk)
            else:
                return self._finish(start, upload_name, upload, message.finish)
        raise InvalidUpload("the upload ended without `finish`; continue it at committed_bytes")

    def _append(self, upload: Upload, chunk: pb.UploadChunk) -> None:
        with self._store.lock:
            committed = len(upload.data)
            if chunk.offset != committed:
                raise InvalidUpload(
                    f"a chunk starts at {chunk.offset}; expected {committed}",
                    metadata={"committed_bytes": str(committed)},
                )
            upload.data += chunk.data

    def _finish(
        self, start: pb.UploadStart, upload_name: str, upload: Upload, finish: pb.UploadFinish
    ) -> pb.UploadDatasetResponse:
        data = bytes(upload.data)

        def make() -> pb.UploadDatasetResponse:
            if finish.size_bytes != len(data):
                raise InvalidUpload(f"finish.size_bytes is {finish.size_bytes}; received: {len(data)}")
            if finish.sha256 and finish.sha256 != hashlib.sha256(data).digest():
                raise InvalidUpload("finish.sha256 is not that of the bytes received")
            rows, kind = read_rows(data, start.format, start.columns)
            return pb.UploadDatasetResponse(dataset=self._add(upload.dataset, rows, kind, "upload"))

        with self._store.lock:
            self._store.uploads.pop(upload_name, None)
            return self._store.once(start.parent, start.request_id, start, make)

    def _add(self, name: str, rows: Sequence[Row], kind: pb.RowKind, source: str) -> pb.Dataset:
        if name in self._store.datasets:
            raise AlreadyExists(
                f"{name!r} exists; delete it or choose another id", metadata={"resource": name}
            )
        canonical = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
        dataset = pb.Dataset(
            name=name,
            digest="sha256:" + hashlib.sha256(canonical).hexdigest(),
            row_kind=kind,
            rows=len(rows),
            size_bytes=len(canonical),
            create_time=self._store.now(),
            source=source,
            report=report_of(rows),
        )
        self._store.datasets[name] = dataset
        return dataset

    def GetUpload(self, request: pb.GetUploadRequest, context: grpc.ServicerContext) -> pb.GetUploadResponse:
        check_name(request.name, "tenants/{}/uploads/{}")
        with self._store.lock:
            upload = lookup(self._store.uploads, request.name)
            answer = pb.GetUploadResponse(committed_bytes=len(upload.data), dataset=upload.dataset)
            answer.expire_time.FromDatetime(self._store.now().ToDatetime() + _UPLOADS_KEPT)
            return answer

    def ImportDataset(
        self, request: pb.ImportDatasetRequest, context: grpc.ServicerContext
    ) -> pb.ImportDatasetResponse:
        check_name(request.parent, "tenants/{}", "parent")
        check_name(request.dataset_id, "{}", "dataset_id")
        check_format(request.format)
        uri = urlsplit(request.uri)
        if uri.scheme != "file" or not Path(uri.path).is_file():
            raise InvalidField.one("uri", f"is {request.uri!r}; expected a file:/// URI of a file")

        def make() -> pb.ImportDatasetResponse:
            name = f"{request.parent}/datasets/{request.dataset_id}"
            file_format = format_of(uri.path, request.format)
            rows, kind = read_rows(Path(uri.path).read_bytes(), file_format, request.columns)
            return pb.ImportDatasetResponse(dataset=self._add(name, rows, kind, request.uri))

        with self._store.lock:
            return self._store.once(request.parent, request.request_id, request, make)

    def GetDataset(
        self, request: pb.GetDatasetRequest, context: grpc.ServicerContext
    ) -> pb.GetDatasetResponse:
        check_name(request.name, "tenants/{}/datasets/{}")
        with self._store.lock:
            return pb.GetDatasetResponse(dataset=lookup(self._store.datasets, request.name))

    def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: grpc.ServicerContext
    ) -> pb.ListDatasetsResponse:
        check_name(request.parent, "tenants/{}", "parent")
        with self._store.lock:
            found = [
                dataset
                for name, dataset in sorted(self._store.datasets.items())
                if name.startswith(request.parent + "/") and request.row_kind in {0, dataset.row_kind}
            ]
            items, token = page(found, request)
            answer = pb.ListDatasetsResponse(datasets=items, next_page_token=token)
            for dataset in answer.datasets:
                dataset.ClearField("report")
            return answer

    def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: grpc.ServicerContext
    ) -> pb.DeleteDatasetResponse:
        check_name(request.name, "tenants/{}/datasets/{}")
        with self._store.lock:
            lookup(self._store.datasets, request.name)
            for running in self._store.jobs.values():
                used = {running.job.train.dataset, running.job.train.eval_dataset}
                if request.name in used and running.job.state not in _FINAL:
                    raise ResourceInUse(
                        f"{request.name!r} is used by an unfinished job",
                        metadata={"used_by": running.job.name},
                    )
            del self._store.datasets[request.name]
            return pb.DeleteDatasetResponse()
