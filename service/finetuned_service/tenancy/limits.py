"""The limits of a tenant by name, and the refusal of what would go above one.

The names are those of `settings.TenantLimits`, of the contract's TenantUsage and of `[limits]` in the
configuration file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from finetuned_service.errors import QuotaExceeded
from finetuned_service.settings import TenantLimits

LimitsOf: TypeAlias = Callable[[str], TenantLimits]
"""The limits that hold for a tenant."""


class Limit(StrEnum):
    STORAGE_BYTES = "storage_bytes"
    DATASETS = "datasets"
    ADAPTERS = "adapters"
    ADAPTER_VERSIONS = "adapter_versions"
    UNFINISHED_JOBS = "unfinished_jobs"
    STREAMS = "streams"
    REQUESTS_PER_SECOND = "requests_per_second"

    @property
    def unit(self) -> str:
        return _FACTS[self].unit

    @property
    def per_replica(self) -> bool:
        """Whether each replica counts for itself; what is stored counts once for all."""
        return self in {Limit.STREAMS, Limit.REQUESTS_PER_SECOND}


@dataclass(frozen=True, slots=True)
class _Facts:
    unit: str
    remedy: str
    retry_after_seconds: float
    """What makes room is a deletion, the end of a job or of a stream; nobody knows when."""


_DELETE_RETRY_SECONDS = 60.0
_FACTS: Mapping[Limit, _Facts] = {
    Limit.STORAGE_BYTES: _Facts(
        "bytes",
        "Delete datasets, adapter versions or bases, finish uploads, or wait for jobs to end",
        _DELETE_RETRY_SECONDS,
    ),
    Limit.DATASETS: _Facts("datasets", "Delete one, or finish an upload that waits", _DELETE_RETRY_SECONDS),
    Limit.ADAPTERS: _Facts("adapters", "Delete one, or cancel a job that makes one", _DELETE_RETRY_SECONDS),
    Limit.ADAPTER_VERSIONS: _Facts(
        "versions", "Delete one that no alias names, or cancel a job that makes one", _DELETE_RETRY_SECONDS
    ),
    Limit.UNFINISHED_JOBS: _Facts("jobs", "Wait for one to end, or cancel one", 30.0),
    Limit.STREAMS: _Facts("streams", "Wait for one to end, or end one", 1.0),
    Limit.REQUESTS_PER_SECOND: _Facts("requests/s", "Send fewer, or put several into a batch", 1.0),
}


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How much of a limit a tenant has taken."""

    limit: Limit
    used: int
    allowed: int


def allowed(limits: TenantLimits, limit: Limit) -> int:
    return int(getattr(limits, limit))


def refuse_above(tenant: str, use: LimitUse, wanted: int) -> None:
    """Refuse what would go above a limit.

    Raises:
        QuotaExceeded: `wanted` more do not fit.
    """
    if use.used + wanted > use.allowed:
        raise refusal(tenant, use, wanted, _FACTS[use.limit].retry_after_seconds)


def refusal(tenant: str, use: LimitUse, wanted: int, retry_after_seconds: float) -> QuotaExceeded:
    """What the tenant is told: which limit, how much is used, what makes room."""
    facts = _FACTS[use.limit]
    return QuotaExceeded(
        f"{use.limit} of tenants/{tenant}: {use.used} {facts.unit} are used and {wanted} more wanted; allowed: "
        f"{use.allowed}. {facts.remedy}",
        metadata={
            "limit": use.limit,
            "subject": f"tenants/{tenant}",
            "used": str(use.used),
            "allowed": str(use.allowed),
        },
        retry_after_seconds=retry_after_seconds,
    )
