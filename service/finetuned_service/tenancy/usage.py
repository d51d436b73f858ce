"""All limits of a tenant beside what it uses of them."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.storage.database import Database
from finetuned_service.tenancy.limits import LimitUse
from finetuned_service.tenancy.stored import StoredLimits
from finetuned_service.tenancy.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Usage:
    """Tells tenants what they use."""

    database: Database
    stored: StoredLimits
    traffic: Traffic

    def kept(self, tenant: str) -> list[LimitUse]:
        """What is stored; reads the database and the sizes of files."""
        with self.database.read() as connection:
            return self.stored.usage(connection, tenant)

    def now(self, tenant: str) -> list[LimitUse]:
        """What is done at the moment; for the event loop that calls are counted in."""
        return self.traffic.usage(tenant)
