"""BaseService: bases in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from finetuned.v1 import base_service_pb2 as pb
from finetuned.v1 import base_service_pb2_grpc as grpc_pb
from grpc import aio

from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.jobs.store import JobStore
from finetuned_service.names import BaseName, parse_tenant
from finetuned_service.rpc.convert.bases import base_to_proto
from finetuned_service.rpc.page_request import page_request
from finetuned_service.storage.pages import page_of
from finetuned_service.tenancy.caller import current_caller


class BaseServicer(grpc_pb.BaseServiceServicer):
    """`resident` is the name of the base that this server holds."""

    def __init__(self, catalog: BaseCatalog, jobs: JobStore, resident: str) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._resident = resident

    async def GetBase(  # noqa: N802 - the contract's name
        self, request: pb.GetBaseRequest, context: aio.ServicerContext[pb.GetBaseRequest, pb.GetBaseResponse]
    ) -> pb.GetBaseResponse:
        base = await asyncio.to_thread(self._catalog.get, BaseName.parse(request.name))
        return pb.GetBaseResponse(base=base_to_proto(base, resident=base.name == self._resident))

    async def ListBases(  # noqa: N802 - the contract's name
        self,
        request: pb.ListBasesRequest,
        context: aio.ServicerContext[pb.ListBasesRequest, pb.ListBasesResponse],
    ) -> pb.ListBasesResponse:
        asked = page_request(request)
        found = await asyncio.to_thread(self._catalog.list, parse_tenant(request.parent))
        page = page_of([(b.name, b) for b in found if b.name > asked.after][: asked.size + 1], asked)
        bases = [base_to_proto(base, resident=base.name == self._resident) for base in page.items]
        return pb.ListBasesResponse(bases=bases, next_page_token=page.next_token)

    async def DeleteBase(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteBaseRequest,
        context: aio.ServicerContext[pb.DeleteBaseRequest, pb.DeleteBaseResponse],
    ) -> pb.DeleteBaseResponse:
        name = BaseName.parse(request.name)
        if name.tenant is None:
            current_caller().check_admin(f"deleting {name}, which all tenants share,")
        users = _told(await asyncio.to_thread(self._jobs.using_base, str(name)), name.tenant)
        if str(name) == self._resident:
            users = ["this server", *users]
        await asyncio.to_thread(self._catalog.delete, name, users)
        return pb.DeleteBaseResponse()


def _told(jobs: Sequence[str], tenant: str | None) -> list[str]:
    """Names of the tenant's own jobs; of others only that there are some."""
    own = [job for job in jobs if tenant is not None and job.startswith(f"tenants/{tenant}/")]
    others = len(jobs) - len(own)
    return [*own, f"{others} unfinished jobs"] if others else own
