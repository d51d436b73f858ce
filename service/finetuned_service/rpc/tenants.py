"""TenantService: what a tenant uses."""

from __future__ import annotations

import asyncio

from finetuned.v1 import tenant_service_pb2 as pb
from finetuned.v1 import tenant_service_pb2_grpc as grpc_pb
from grpc import aio

from finetuned_service.names import parse_usage
from finetuned_service.rpc.convert.tenants import limit_use_to_proto
from finetuned_service.tenancy.usage import Usage


class TenantServicer(grpc_pb.TenantServiceServicer):
    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    async def GetUsage(  # noqa: N802 - the contract's name
        self,
        request: pb.GetUsageRequest,
        context: aio.ServicerContext[pb.GetUsageRequest, pb.GetUsageResponse],
    ) -> pb.GetUsageResponse:
        tenant = parse_usage(request.name)
        kept = await asyncio.to_thread(self._usage.kept, tenant)
        limits = [limit_use_to_proto(use) for use in (*kept, *self._usage.now(tenant))]
        return pb.GetUsageResponse(usage=pb.TenantUsage(name=request.name, limits=limits))
