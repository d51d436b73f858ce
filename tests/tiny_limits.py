"""Limits of tenants for stores that a test makes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetuned_service.settings import TenantLimits
from finetuned_service.tenancy.stored import StoredLimits


def stored_limits(directory: Path, **limits: Any) -> StoredLimits:
    """The same for every tenant; what is not given is as generous as by default."""
    found = TenantLimits(**limits)
    return StoredLimits(lambda _tenant: found, directory)
