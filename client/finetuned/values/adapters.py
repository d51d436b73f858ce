"""Adapters, their versions and aliases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import final

from finetuned.values.common import Method, Metric, Residency, Task


class AdapterState(StrEnum):
    """Whether the server can serve an adapter: INCOMPATIBLE was made for another base than it holds."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    INCOMPATIBLE = "INCOMPATIBLE"


@final
@dataclass(frozen=True, slots=True)
class Alias:
    name: str
    """`tenants/{tenant}/adapters/{adapter}/aliases/{alias}`"""
    version: str
    """The version it points to."""
    previous_version: str
    """Where `adapters.rollback` moves it; empty if it never moved."""
    etag: str
    """Changes with every move; give it to `adapters.set_alias` to move only what you read."""
    update_time: datetime | None


@final
@dataclass(frozen=True, slots=True)
class Adapter:
    name: str
    """`tenants/{tenant}/adapters/{adapter}`"""
    create_time: datetime | None
    latest_version: str
    version_count: int
    aliases: tuple[Alias, ...]
    state: AdapterState
    """Of the version that `default` points to."""
    incompatible_reason: str


@final
@dataclass(frozen=True, slots=True)
class Lineage:
    """Where an adapter version came from; empty where it does not apply."""

    job: str
    dataset: str
    dataset_digest: str
    parent_version: str
    source: str


@final
@dataclass(frozen=True, slots=True)
class ReplicaResidency:
    """Where an adapter's weights are on one replica."""

    replica: str
    residency: Residency
    pinned: bool
    running_requests: int
    resident_bytes: int


@final
@dataclass(frozen=True, slots=True)
class AdapterVersion:
    name: str
    """`tenants/{tenant}/adapters/{adapter}/versions/{version}`"""
    digest: str
    base_digest: str
    base_root_digest: str
    base_verified: bool
    """False if an import accepted the base unverified."""
    compatible: bool
    """Whether the server's base can serve it."""
    incompatible_reason: str
    state: AdapterState
    """Says the same as `compatible`, as lists show it."""
    method: Method
    task: Task
    metrics: tuple[Metric, ...]
    lineage: Lineage
    size_bytes: int
    parameters: int
    modules: int
    """Modules of the base that it changes."""
    rank: int
    create_time: datetime | None
    residency: tuple[ReplicaResidency, ...]
    expire_time: datetime | None
    """When it goes at the earliest, unless an alias is set to it; None if it is kept."""


@final
@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """An adapter version written to a directory in PEFT's layout."""

    version: str
    directory: str
    files: tuple[str, ...]
