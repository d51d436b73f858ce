"""TuningService: jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from finetuned.v1 import job_pb2
from finetuned.v1 import tuning_service_pb2 as pb
from finetuned.v1 import tuning_service_pb2_grpc as grpc_pb
from grpc import aio

from finetuned_service.errors import InvalidField, Unavailable
from finetuned_service.jobs.event_files import EventFiles
from finetuned_service.jobs.states import Priority
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.submit import Submission
from finetuned_service.names import ResourceName, parse_tenant
from finetuned_service.rpc.convert.jobs import event_to_proto, job_state_to_proto, job_to_proto
from finetuned_service.rpc.convert.specs import (
    job_filter_from_proto,
    priority_from_proto,
    quantize_spec_from_proto,
    train_spec_from_proto,
)
from finetuned_service.rpc.page_request import page_request
from finetuned_service.rpc.request_key import request_key
from finetuned_service.rpc.turns import LongCalls
from finetuned_service.tenancy.caller import current_caller

WATCH_POLL_SECONDS = 0.2
"""Jobs may run under another process; the store is where their events meet."""
WATCH_BATCH = 500
MAX_SUBMISSION_BYTES = 256 * 1024
"""A job is told again by every List call."""


class TuningServicer(grpc_pb.TuningServiceServicer):
    def __init__(
        self, store: JobStore, submission: Submission, event_files: EventFiles, stopping: asyncio.Event
    ) -> None:
        """Watches end when `stopping` is set: they would hold up the server's end for all of its grace."""
        self._stopping = stopping
        self._store = store
        self._submission = submission
        self._event_files = event_files
        self._long_calls = LongCalls()  # submissions read all rows

    async def TrainJob(  # noqa: N802 - the contract's name
        self,
        request: pb.TrainJobRequest,
        context: aio.ServicerContext[pb.TrainJobRequest, pb.TrainJobResponse],
    ) -> pb.TrainJobResponse:
        tenant = parse_tenant(request.parent)
        _refuse_large(request)
        priority = _allowed_priority(request)
        if request.rerun_of:
            _refuse_settings(request.spec)
            job = await self._long_calls.run(
                tenant,
                self._submission.rerun,
                tenant,
                ResourceName.parse(request.rerun_of, "jobs", "rerun_of"),
                request.spec.base,
                request.display_name,
                request_key(tenant, request),
                validate_only=request.validate_only,
                priority=priority,
                pause_after_estimate=request.pause_after_estimate,
            )
        else:
            job = await self._long_calls.run(
                tenant,
                self._submission.train,
                tenant,
                train_spec_from_proto(request.spec),
                request.display_name,
                request_key(tenant, request),
                validate_only=request.validate_only,
                priority=priority,
                pause_after_estimate=request.pause_after_estimate,
            )
        return pb.TrainJobResponse(job=job_to_proto(job))

    async def Quantize(  # noqa: N802 - the contract's name
        self,
        request: pb.QuantizeRequest,
        context: aio.ServicerContext[pb.QuantizeRequest, pb.QuantizeResponse],
    ) -> pb.QuantizeResponse:
        tenant = parse_tenant(request.parent)
        _refuse_large(request)
        priority = _allowed_priority(request)
        job = await self._long_calls.run(
            tenant,
            self._submission.quantize,
            tenant,
            quantize_spec_from_proto(request.spec),
            request.display_name,
            request_key(tenant, request),
            validate_only=request.validate_only,
            priority=priority,
        )
        return pb.QuantizeResponse(job=job_to_proto(job))

    async def GetJob(  # noqa: N802 - the contract's name
        self, request: pb.GetJobRequest, context: aio.ServicerContext[pb.GetJobRequest, pb.GetJobResponse]
    ) -> pb.GetJobResponse:
        name = ResourceName.parse(request.name, "jobs")
        return pb.GetJobResponse(
            job=job_to_proto(await asyncio.to_thread(self._store.get, name.tenant, name.id))
        )

    async def ListJobs(  # noqa: N802 - the contract's name
        self,
        request: pb.ListJobsRequest,
        context: aio.ServicerContext[pb.ListJobsRequest, pb.ListJobsResponse],
    ) -> pb.ListJobsResponse:
        page = await asyncio.to_thread(
            self._store.list,
            parse_tenant(request.parent),
            job_filter_from_proto(request),
            page_request(request),
        )
        return pb.ListJobsResponse(
            jobs=[job_to_proto(job) for job in page.items], next_page_token=page.next_token
        )

    async def WatchJob(  # noqa: N802 - the contract's name
        self,
        request: pb.WatchJobRequest,
        context: aio.ServicerContext[pb.WatchJobRequest, pb.WatchJobResponse],
    ) -> AsyncIterator[pb.WatchJobResponse]:
        name = ResourceName.parse(request.name, "jobs")
        after = request.after_event
        while True:
            # The state is read before the events: what it says to be final has all its events written.
            last, state = await asyncio.to_thread(self._store.last_event, name.tenant, name.id)
            while after < last:
                events = await asyncio.to_thread(self._store.events, name.tenant, name.id, after, WATCH_BATCH)
                for event in events:
                    yield pb.WatchJobResponse(event=event_to_proto(event), state=job_state_to_proto(state))
                after = events[-1].number if events else last
            if state.final:
                return
            if self._stopping.is_set():
                raise Unavailable("the server is stopping; watch on elsewhere", retry_after_seconds=1.0)
            await asyncio.sleep(WATCH_POLL_SECONDS)

    async def ListJobEvents(  # noqa: N802 - the contract's name
        self,
        request: pb.ListJobEventsRequest,
        context: aio.ServicerContext[pb.ListJobEventsRequest, pb.ListJobEventsResponse],
    ) -> pb.ListJobEventsResponse:
        name = ResourceName.parse(request.parent, "jobs", "parent")
        page = await asyncio.to_thread(
            self._store.event_page,
            name.tenant,
            name.id,
            page_request(request),
        )
        return pb.ListJobEventsResponse(
            events=[event_to_proto(event) for event in page.items], next_page_token=page.next_token
        )

    async def ExportTensorBoard(  # noqa: N802 - the contract's name
        self,
        request: pb.ExportTensorBoardRequest,
        context: aio.ServicerContext[pb.ExportTensorBoardRequest, pb.ExportTensorBoardResponse],
    ) -> AsyncIterator[pb.ExportTensorBoardResponse]:
        name = ResourceName.parse(request.name, "jobs")
        chunks = await asyncio.to_thread(self._event_files.chunks, name.tenant, name.id)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.ExportTensorBoardResponse(
                file_name=chunk.file_name, offset=chunk.offset, data=chunk.data
            )

    async def CancelJob(  # noqa: N802 - the contract's name
        self,
        request: pb.CancelJobRequest,
        context: aio.ServicerContext[pb.CancelJobRequest, pb.CancelJobResponse],
    ) -> pb.CancelJobResponse:
        name = ResourceName.parse(request.name, "jobs")
        job = await asyncio.to_thread(self._store.cancel, name.tenant, name.id)
        return pb.CancelJobResponse(job=job_to_proto(job))

    async def PauseJob(  # noqa: N802 - the contract's name
        self,
        request: pb.PauseJobRequest,
        context: aio.ServicerContext[pb.PauseJobRequest, pb.PauseJobResponse],
    ) -> pb.PauseJobResponse:
        name = ResourceName.parse(request.name, "jobs")
        job = await asyncio.to_thread(self._store.pause, name.tenant, name.id)
        return pb.PauseJobResponse(job=job_to_proto(job))

    async def ResumeJob(  # noqa: N802 - the contract's name
        self,
        request: pb.ResumeJobRequest,
        context: aio.ServicerContext[pb.ResumeJobRequest, pb.ResumeJobResponse],
    ) -> pb.ResumeJobResponse:
        name = ResourceName.parse(request.name, "jobs")
        job = await asyncio.to_thread(self._store.resume, name.tenant, name.id)
        return pb.ResumeJobResponse(job=job_to_proto(job))

    async def DeleteJob(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteJobRequest,
        context: aio.ServicerContext[pb.DeleteJobRequest, pb.DeleteJobResponse],
    ) -> pb.DeleteJobResponse:
        name = ResourceName.parse(request.name, "jobs")
        await asyncio.to_thread(self._store.delete, name.tenant, name.id)
        return pb.DeleteJobResponse()


def _allowed_priority(request: pb.TrainJobRequest | pb.QuantizeRequest) -> Priority:
    """The priority asked for.

    Raises:
        PermissionDenied: only an admin may have jobs of all tenants wait for one.
    """
    priority = priority_from_proto(request.priority)
    if priority is Priority.HIGH:
        current_caller().check_admin("a job of priority HIGH, for which others are stopped,")
    return priority


def _refuse_settings(spec: job_pb2.TrainSpec) -> None:
    given = [field.name for field, _ in spec.ListFields() if field.name != "base"]
    if given:
        raise InvalidField.one(
            f"spec.{given[0]}",
            "is set beside rerun_of, which takes all but the base from the job's record; leave it out, or start "
            "a TrainJob of its own",
        )


def _refuse_large(request: pb.TrainJobRequest | pb.QuantizeRequest) -> None:
    size_bytes = request.ByteSize()
    if size_bytes > MAX_SUBMISSION_BYTES:
        raise InvalidField.one(
            "spec",
            f"with its names has {size_bytes} bytes; allowed: {MAX_SUBMISSION_BYTES}. Shorten its texts",
        )
