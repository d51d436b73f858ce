"""How much of the memory for adapters each tenant may pin. Pure logic.

The threshold moves with what is free, as for places in the queue (`engine/queue_places.py`): so nobody pins all,
some memory is always left for adapters of others, and a tenant that is alone may pin most of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetuned_service.engine.messages import Residency
from finetuned_service.errors import QuotaExceeded
from finetuned_service.serving.holders import Pinned

_RETRY_SECONDS = 60.0
"""Somebody unpins something; nobody knows when."""


@dataclass(frozen=True, slots=True)
class PinShares:
    """The memory of each tier, for all tenants together."""

    tier_bytes: Mapping[Residency, int]
    share: float
    """Of it, how much a tenant may pin that is alone, above 0 to 1; 1 is no limit beside the memory itself."""

    def refuse_above(self, wanted: Pinned, held: Iterable[Pinned]) -> None:
        """Refuse a pin that would leave others too little, by what all have pinned before it.

        Raises:
            QuotaExceeded: naming what the tenant has pinned in that tier, and what it may.
        """
        if self.share >= 1:
            return
        held = list(held)
        if any((p.digest, p.tenant, p.tier) == (wanted.digest, wanted.tenant, wanted.tier) for p in held):
            return  # it changes nothing
        there = [pinned for pinned in held if pinned.tier is wanted.tier and pinned.digest != wanted.digest]
        own = {pinned.digest: pinned.size_bytes for pinned in there if pinned.tenant == wanted.tenant}
        own_bytes = sum(own.values())
        # What several have pinned takes its memory once; here it counts for who asks.
        others = {pinned.digest: pinned.size_bytes for pinned in there if pinned.digest not in own}
        allowed_bytes = int(self.share * (self.tier_bytes[wanted.tier] - sum(others.values())))
        if own_bytes + wanted.size_bytes > allowed_bytes:
            raise QuotaExceeded(
                f"tenants/{wanted.tenant} has pinned {len(own)} adapters of {own_bytes / 1e6:,.1f} MB in {wanted.tier}, and "
                f"this one takes {wanted.size_bytes / 1e6:,.1f} MB; allowed: {allowed_bytes / 1e6:,.1f} MB, the rest is for "
                "other tenants. Unpin one with UnloadAdapter, load this one without a pin, or ask the operator for a larger "
                "max_tenant_pin_share",
                metadata={
                    "limit": "pinned_bytes",
                    "subject": f"tenants/{wanted.tenant}",
                    "used": str(own_bytes),
                    "allowed": str(allowed_bytes),
                },
                retry_after_seconds=_RETRY_SECONDS,
            )
