"""TenantService of the fake server."""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

from typing import final

import grpc

from finetuned.testing._store import Store, check_name
from finetuned.v1 import tenant_service_pb2 as pb
from finetuned.v1.tenant_service_pb2_grpc import TenantServiceServicer

_ALLOWED = 1_000_000


@final
class FakeTenants(TenantServiceServicer):
    """Counts datasets, adapters and unfinished jobs; allows a million of each and refuses nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def GetUsage(self, request: pb.GetUsageRequest, context: grpc.ServicerContext) -> pb.GetUsageResponse:
        (tenant,) = check_name(request.name, "tenants/{}/usage")
        own = f"tenants/{tenant}/"
        with self._store.lock:
            found = {
                "datasets": sum(name.startswith(own) for name in self._store.datasets),
                "adapters": sum(name.startswith(own) for name in self._store.adapters),
                "jobs": sum(
                    name.startswith(own) and bool(running.to_come)
                    for name, running in self._store.jobs.items()
                ),
            }
        limits = [
            pb.LimitUse(
                limit="unfinished_jobs" if unit == "jobs" else unit, used=used, allowed=_ALLOWED, unit=unit
            )
            for unit, used in found.items()
        ]
        return pb.GetUsageResponse(usage=pb.TenantUsage(name=request.name, limits=limits))
