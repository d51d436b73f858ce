"""Limits of tenants."""

from __future__ import annotations

from finetuned.v1 import tenant_service_pb2 as pb

from finetuned_service.tenancy.limits import LimitUse


def limit_use_to_proto(use: LimitUse) -> pb.LimitUse:
    return pb.LimitUse(
        limit=use.limit,
        used=use.used,
        allowed=use.allowed,
        unit=use.limit.unit,
        per_replica=use.limit.per_replica,
    )
