"""BaseService of the fake server."""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

from typing import final

import grpc

from finetuned.errors import ResourceInUse
from finetuned.testing._plan import FINAL
from finetuned.testing._store import Store, check_name, lookup, page
from finetuned.v1 import base_service_pb2 as pb
from finetuned.v1.base_service_pb2_grpc import BaseServiceServicer

_NAME = r"(?:tenants/{}/)?bases/{}"


@final
class FakeBases(BaseServiceServicer):
    def __init__(self, store: Store) -> None:
        self._store = store

    def GetBase(self, request: pb.GetBaseRequest, context: grpc.ServicerContext) -> pb.GetBaseResponse:
        check_name(request.name, _NAME)
        with self._store.lock:
            return pb.GetBaseResponse(base=lookup(self._store.bases, request.name))

    def ListBases(self, request: pb.ListBasesRequest, context: grpc.ServicerContext) -> pb.ListBasesResponse:
        check_name(request.parent, "tenants/{}", "parent")
        with self._store.lock:
            # What all tenants share, and the tenant's own.
            found = [
                base
                for name, base in sorted(self._store.bases.items())
                if name.startswith(("bases/", request.parent + "/"))
            ]
            items, token = page(found, request)
            return pb.ListBasesResponse(bases=items, next_page_token=token)

    def DeleteBase(
        self, request: pb.DeleteBaseRequest, context: grpc.ServicerContext
    ) -> pb.DeleteBaseResponse:
        check_name(request.name, _NAME)
        with self._store.lock:
            users = ["this server"] if lookup(self._store.bases, request.name).resident else []
            users += [
                name
                for name, running in self._store.jobs.items()
                if request.name in {running.job.train.base, running.job.quantize.base}
                and running.job.state not in FINAL
            ]
            if users:
                raise ResourceInUse(
                    f"{request.name!r} is used by {', '.join(users)}",
                    metadata={"resource": request.name, "used_by": ", ".join(users)},
                )
            del self._store.bases[request.name]
            return pb.DeleteBaseResponse()
