"""Resource names: `tenants/{tenant}/adapters/{adapter}/versions/{version}` and its like.

One parser for all of them, so that a name is checked the same way wherever it comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetuned_service.errors import InvalidField

ID_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ID = ID_PATTERN
ID_RULE = "a-z, 0-9 and '-', 1 to 63 characters, first and last not '-'"


def check_id(value: str, field: str) -> str:
    """`value` if it is a legal last part of a name.

    Raises:
        InvalidField: if it is not.
    """
    if not re.fullmatch(_ID, value):
        raise InvalidField.one(field, f"is {value!r}; allowed: {ID_RULE}")
    return value


def _match(pattern: str, value: str, field: str, shape: str) -> re.Match[str]:
    found = re.fullmatch(pattern, value)
    if found is None:
        raise InvalidField.one(field, f"is {value!r}; expected {shape}, each part: {ID_RULE}")
    return found


def parse_tenant(parent: str, field: str = "parent") -> str:
    """The tenant of `tenants/{tenant}`."""
    return _match(rf"tenants/({_ID})", parent, field, "'tenants/{tenant}'").group(1)


def parse_usage(name: str, field: str = "name") -> str:
    """The tenant of `tenants/{tenant}/usage`."""
    return _match(rf"tenants/({_ID})/usage", name, field, "'tenants/{tenant}/usage'").group(1)


def tenant_part(name: str) -> str | None:
    """What stands in a name where the tenant belongs, well-formed or not; None in a name without one."""
    parts = name.split("/", 2)
    return parts[1] if parts[0] == "tenants" and len(parts) > 1 else None


@dataclass(frozen=True, slots=True)
class ResourceName:
    """`tenants/{tenant}/{collection}/{id}` for jobs, datasets, uploads and adapters."""

    tenant: str
    collection: str
    id: str

    @classmethod
    def parse(cls, name: str, collection: str, field: str = "name") -> ResourceName:
        shape = f"'tenants/{{tenant}}/{collection}/{{id}}'"
        found = _match(rf"tenants/({_ID})/{collection}/({_ID})", name, field, shape)
        return cls(found.group(1), collection, found.group(2))

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/{self.collection}/{self.id}"


@dataclass(frozen=True, slots=True)
class AdapterSelector:
    """What a caller may write where an adapter is wanted: an adapter, one of its versions or aliases.

    `version` and `alias` are never both set; neither means the alias "default".
    """

    tenant: str
    adapter: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, name: str, field: str = "name") -> AdapterSelector:
        found = _match(
            rf"tenants/({_ID})/adapters/({_ID})(?:/versions/([1-9][0-9]{{0,8}})|/aliases/({_ID}))?",
            name,
            field,
            "'tenants/{tenant}/adapters/{adapter}', with '/versions/{number}' or '/aliases/{alias}' if wanted",
        )
        tenant, adapter, version, alias = found.groups()
        return cls(tenant, adapter, int(version) if version else None, alias)

    @property
    def adapter_name(self) -> str:
        return f"tenants/{self.tenant}/adapters/{self.adapter}"

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.adapter_name}/versions/{self.version}"
        if self.alias is not None:
            return f"{self.adapter_name}/aliases/{self.alias}"
        return self.adapter_name


@dataclass(frozen=True, slots=True)
class BaseName:
    """`bases/{base}` (shared) or `tenants/{tenant}/bases/{base}` (a tenant's own)."""

    base: str
    tenant: str | None = None

    @classmethod
    def parse(cls, name: str, field: str = "name") -> BaseName:
        shape = "'bases/{base}' or 'tenants/{tenant}/bases/{base}'"
        found = _match(rf"(?:tenants/({_ID})/)?bases/({_ID})", name, field, shape)
        return cls(found.group(2), found.group(1))

    @classmethod
    def parse_short(cls, name: str, field: str = "name") -> BaseName:
        """As `parse`; an id alone is a shared base."""
        return cls.parse(name, field) if "/" in name else cls(check_id(name, field))

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/bases/{self.base}" if self.tenant else f"bases/{self.base}"
