"""DatasetService: uploads and datasets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.v1 import dataset_service_pb2_grpc as grpc_pb
from grpc import aio

from finetuned_service.datasets.formats.choose import DataFormat, check_mapping
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.errors import InvalidUpload
from finetuned_service.names import ResourceName, parse_tenant
from finetuned_service.rpc.convert.common import time_to_proto
from finetuned_service.rpc.convert.datasets import dataset_to_proto, format_from_proto, row_kind_from_proto
from finetuned_service.rpc.page_request import page_request
from finetuned_service.rpc.request_key import request_key
from finetuned_service.rpc.turns import LongCalls, Turns

MAX_CHUNK_BYTES = 1024 * 1024


class DatasetServicer(grpc_pb.DatasetServiceServicer):
    def __init__(self, store: DatasetStore) -> None:
        self._store = store
        self._uploads = Turns(1)  # a client that reconnects meets its own old stream
        self._long_calls = LongCalls()

    async def UploadDataset(  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[pb.UploadDatasetRequest],
        context: aio.ServicerContext[pb.UploadDatasetRequest, pb.UploadDatasetResponse],
    ) -> pb.UploadDatasetResponse:
        start: pb.UploadStart | None = None
        tenant, answered = "", False
        async for request in request_iterator:
            step = request.WhichOneof("step")
            if (start is None) != (step == "start"):
                raise InvalidUpload(f"got {step or 'an empty message'}; the first message is start, once")
            match step:
                case "start":
                    start = request.start
                    tenant = parse_tenant(start.parent, "start.parent")
                    check_mapping(_format_of(start), start.columns)
                    answered = await self._start(tenant, start)
                case "chunk" if start is not None:
                    _refuse_large(request.chunk)
                    if not answered:
                        await self._append(tenant, start.upload_id, request.chunk)
                case "finish" if start is not None:
                    return await self._finish(tenant, start, request.finish)
                case _:
                    raise InvalidUpload("got an empty message; allowed: start, chunk, finish")
        raise InvalidUpload(
            "the stream ended without finish; what came is kept: start again with the same upload_id and go "
            "on at the offset that GetUpload tells"
        )

    async def _start(self, tenant: str, start: pb.UploadStart) -> bool:
        """Open or continue an upload, unless its answer is known, which is the result: such a call takes no place and no
        bytes of a tenant that may have no more.
        """
        if await asyncio.to_thread(self._store.answered, request_key(tenant, start)):
            return True
        await asyncio.to_thread(self._store.uploads.start, tenant, start.upload_id, start.dataset_id)
        return False

    async def _append(self, tenant: str, upload_id: str, chunk: pb.UploadChunk) -> None:
        await self._uploads.run(
            f"{tenant}/{upload_id}",
            lambda: asyncio.to_thread(
                self._store.uploads.append, tenant, upload_id, chunk.offset, chunk.data
            ),
        )

    async def _finish(
        self, tenant: str, start: pb.UploadStart, finish: pb.UploadFinish
    ) -> pb.UploadDatasetResponse:
        dataset = await self._uploads.run(
            f"{tenant}/{start.upload_id}",
            lambda: self._long_calls.run(
                tenant,
                self._store.finish,
                tenant,
                start.upload_id,
                finish.size_bytes,
                finish.sha256,
                request_key(tenant, start, finish),
                _format_of(start),
                dict(start.columns),
            ),
        )
        return pb.UploadDatasetResponse(dataset=dataset_to_proto(dataset))

    async def GetUpload(  # noqa: N802 - the contract's name
        self,
        request: pb.GetUploadRequest,
        context: aio.ServicerContext[pb.GetUploadRequest, pb.GetUploadResponse],
    ) -> pb.GetUploadResponse:
        name = ResourceName.parse(request.name, "uploads")
        upload = await asyncio.to_thread(self._store.uploads.get, name.tenant, name.id)
        return pb.GetUploadResponse(
            committed_bytes=upload.committed_bytes,
            dataset=str(ResourceName(name.tenant, "datasets", upload.dataset_id)),
            expire_time=time_to_proto(upload.expire_time),
        )

    async def ImportDataset(  # noqa: N802 - the contract's name
        self,
        request: pb.ImportDatasetRequest,
        context: aio.ServicerContext[pb.ImportDatasetRequest, pb.ImportDatasetResponse],
    ) -> pb.ImportDatasetResponse:
        tenant = parse_tenant(request.parent)
        dataset = await self._long_calls.run(
            tenant,
            self._store.import_file,
            tenant,
            request.dataset_id,
            request.uri,
            request_key(tenant, request),
            format_from_proto(request.format),
            dict(request.columns),
        )
        return pb.ImportDatasetResponse(dataset=dataset_to_proto(dataset))

    async def GetDataset(  # noqa: N802 - the contract's name
        self,
        request: pb.GetDatasetRequest,
        context: aio.ServicerContext[pb.GetDatasetRequest, pb.GetDatasetResponse],
    ) -> pb.GetDatasetResponse:
        name = ResourceName.parse(request.name, "datasets")
        dataset = await asyncio.to_thread(self._store.get, name.tenant, name.id)
        return pb.GetDatasetResponse(dataset=dataset_to_proto(dataset))

    async def ListDatasets(  # noqa: N802 - the contract's name
        self,
        request: pb.ListDatasetsRequest,
        context: aio.ServicerContext[pb.ListDatasetsRequest, pb.ListDatasetsResponse],
    ) -> pb.ListDatasetsResponse:
        page = await asyncio.to_thread(
            self._store.list,
            parse_tenant(request.parent),
            page_request(request),
            row_kind_from_proto(request.row_kind),
        )
        return pb.ListDatasetsResponse(
            datasets=[dataset_to_proto(dataset, with_report=False) for dataset in page.items],
            next_page_token=page.next_token,
        )

    async def DeleteDataset(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteDatasetRequest,
        context: aio.ServicerContext[pb.DeleteDatasetRequest, pb.DeleteDatasetResponse],
    ) -> pb.DeleteDatasetResponse:
        name = ResourceName.parse(request.name, "datasets")
        await asyncio.to_thread(self._store.delete, name.tenant, name.id)
        return pb.DeleteDatasetResponse()


def _refuse_large(chunk: pb.UploadChunk) -> None:
    if len(chunk.data) > MAX_CHUNK_BYTES:
        raise InvalidUpload(f"a chunk has {len(chunk.data)} bytes; allowed: {MAX_CHUNK_BYTES}")


def _format_of(start: pb.UploadStart) -> DataFormat:
    return format_from_proto(start.format) or DataFormat.JSONL
