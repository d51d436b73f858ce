"""Short names to full resource names and back.

    "redact"         tenants/{tenant}/adapters/redact             (its alias "default")
    "redact@prod"    tenants/{tenant}/adapters/redact/aliases/prod
    "redact@3"       tenants/{tenant}/adapters/redact/versions/3

What contains a "/" is taken as a full name. The service checks the parts; this module only refuses
what it cannot place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetuned.errors import InvalidField

_FULL_ADAPTER = re.compile(r"tenants/[^/]+/adapters/([^/]+)(?:/(?:versions|aliases)/([^/]+))?")
_NOT_ID = re.compile(r"[^a-z0-9]+")
MAX_ID_CHARACTERS = 63


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one tenant."""

    tenant: str

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def dataset(self, name: str) -> str:
        return self._expand("datasets", name)

    def job(self, name: str) -> str:
        return self._expand("jobs", name)

    def upload(self, name: str) -> str:
        return self._expand("uploads", name)

    def base(self, name: str) -> str:
        """A shared base by its short name; a tenant's own by its full one."""
        return name if "/" in name else f"bases/{_not_empty(name, 'base')}"

    def adapter(self, name: str) -> str:
        """The adapter itself, without a version or alias."""
        if "@" in name:
            raise InvalidField.one("adapter", f"is {name!r}; expected the adapter's name without '@'")
        return self._expand("adapters", name)

    def adapter_like(self, name: str) -> str:
        """An adapter, one of its versions or one of its aliases."""
        adapter, at, point = name.partition("@")
        if "/" in name or not at:
            return self._expand("adapters", name)
        if not point:
            raise InvalidField.one("adapter", f"is {name!r}; after '@' comes a version or an alias")
        collection = "versions" if point.isdecimal() else "aliases"
        return f"{self._expand('adapters', adapter)}/{collection}/{point}"

    def version(self, name: str) -> str:
        """One version: "redact@3" or its full name."""
        full = self.adapter_like(name)
        if "/versions/" not in full:
            raise InvalidField.one("version", f"is {name!r}; expected a version such as 'redact@3'")
        return full

    def alias(self, name: str) -> str:
        """One alias: "redact@prod" or its full name; "redact" means its alias "default"."""
        full = self.adapter_like(name)
        if "/versions/" in full:
            raise InvalidField.one(
                "alias", f"is {name!r}, a version; expected an alias such as 'redact@prod'"
            )
        return full if "/aliases/" in full else f"{full}/aliases/default"

    def _expand(self, collection: str, name: str) -> str:
        if "/" in name:
            return name
        return f"{self.parent}/{collection}/{_not_empty(name, collection.removesuffix('s'))}"


def _not_empty(name: str, field: str) -> str:
    if not name:
        raise InvalidField.one(field, "is empty; expected a name")
    return name


def short(name: str) -> str:
    """The short form of a full name: "redact@3" for a version, the last part for the rest."""
    found = _FULL_ADAPTER.fullmatch(name)
    if found is None:
        return name.rpartition("/")[2]
    adapter, point = found.groups()
    return f"{adapter}@{point}" if point else adapter


def to_id(text: str) -> str:
    """`text` turned into a legal last part of a name: "My rows (2).jsonl" gives "my-rows-2-jsonl".

    Raises:
        InvalidField: if nothing legal is left.
    """
    found = _NOT_ID.sub("-", text.lower())[:MAX_ID_CHARACTERS].strip("-")
    if not found:
        raise InvalidField.one("id", f"{text!r} holds no a-z or 0-9 to make an id of; give one")
    return found
