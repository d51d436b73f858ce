"""The verb that asks what the tenant uses."""

from __future__ import annotations

from finetuned import _convert as convert
from finetuned._calls.call import Call, Method
from finetuned._names import Names
from finetuned.v1 import tenant_service_pb2 as pb
from finetuned.values.server import TenantUsage

_SERVICE = "TenantService"


def usage(names: Names) -> Call[TenantUsage]:
    """What the tenant uses of what it may have and do, limit by limit."""

    def read(answer: pb.GetUsageResponse) -> TenantUsage:
        return convert.read(answer.usage, TenantUsage)

    request = pb.GetUsageRequest(name=f"{names.parent}/usage")
    return Call(Method(_SERVICE, "GetUsage", pb.GetUsageResponse), request, read)
