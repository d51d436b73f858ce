"""What a server holds, can do and allows, and what a tenant uses of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from finetuned.values.bases import Base
from finetuned.values.common import Method, Task, WeightFormat


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What requests may ask for."""

    context_tokens: int
    max_running_sequences: int
    max_queued_sequences: int
    max_upload_bytes: int
    max_line_bytes: int
    max_lora_rank: int
    max_batch_requests: int
    max_samples: int
    """Replies to one input."""
    max_replies: int
    """Of one request: inputs times samples."""
    max_constraint_bytes: int
    """The longest JSON schema or regular expression."""


@final
@dataclass(frozen=True, slots=True)
class LimitUse:
    """One limit of a tenant; what would go above it raises `errors.QuotaExceeded`."""

    limit: str
    """For example "storage_bytes", "unfinished_jobs" or "requests_per_second"."""
    used: int
    """With uploads in progress and the results that unfinished jobs will have."""
    allowed: int
    unit: str
    per_replica: bool
    """Each replica counts for itself; `used` is of the one that answered."""


@final
@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant uses of what it may have and do."""

    name: str
    limits: tuple[LimitUse, ...]


@final
@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine does now."""

    running_sequences: int
    queued_sequences: int
    kv_tokens_used: int
    kv_tokens_capacity: int
    adapters_on_device: int


@final
@dataclass(frozen=True, slots=True)
class MemoryUse:
    use: str
    """For example "base", "adapters" or "kv_cache"."""
    bytes: int


@final
@dataclass(frozen=True, slots=True)
class ServerInfo:
    service_version: str
    replica: str
    base: Base
    resident_base_digest: str
    """The digest of the weights in memory; equal to `base.digest`."""
    device: str
    limits: Limits
    methods: tuple[Method, ...]
    tasks: tuple[Task, ...]
    weight_formats: tuple[WeightFormat, ...]
    load: EngineLoad
    memory: tuple[MemoryUse, ...]
    compute_path: str
    """How the base is computed, for people; the native path is the fast one."""
