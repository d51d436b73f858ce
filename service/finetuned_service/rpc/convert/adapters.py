"""Adapters, versions, aliases."""

from __future__ import annotations

from datetime import datetime

from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.v1 import common_pb2 as common

from finetuned_service.adapters.aliases import Alias
from finetuned_service.adapters.versions import Adapter, AdapterVersion
from finetuned_service.engine.messages import AdapterResidency
from finetuned_service.rpc.convert.common import TASKS, method_to_proto, metrics_to_proto, time_to_proto


def adapter_to_proto(adapter: Adapter, *, incompatible_reason: str) -> pb.Adapter:
    latest = f"{adapter.name}/versions/{adapter.latest_version}" if adapter.version_count else ""
    return pb.Adapter(
        name=adapter.name,
        create_time=time_to_proto(adapter.create_time),
        latest_version=latest,
        version_count=adapter.version_count,
        aliases=[alias_to_proto(alias) for alias in adapter.aliases],
        state=_state(incompatible_reason),
        incompatible_reason=incompatible_reason,
    )


def _state(incompatible_reason: str) -> pb.AdapterState:
    return pb.ADAPTER_STATE_INCOMPATIBLE if incompatible_reason else pb.ADAPTER_STATE_READY


def version_to_proto(
    version: AdapterVersion,
    *,
    incompatible_reason: str,
    expire_time: datetime | None,
    residency: AdapterResidency | None,
    replica: str,
) -> pb.AdapterVersion:
    manifest = version.manifest
    lineage = manifest.lineage
    return pb.AdapterVersion(
        name=version.name,
        digest=manifest.digest,
        base_digest=manifest.base_digest,
        base_root_digest=manifest.base_root_digest,
        base_verified=manifest.base_verified,
        compatible=not incompatible_reason,
        incompatible_reason=incompatible_reason,
        state=_state(incompatible_reason),
        method=method_to_proto(manifest.method),
        task=TASKS[manifest.task],
        metrics=metrics_to_proto(manifest.metrics),
        lineage=pb.Lineage(**lineage.model_dump()),
        size_bytes=manifest.size_bytes,
        parameters=manifest.parameters,
        modules=manifest.modules,
        rank=manifest.rank,
        create_time=time_to_proto(manifest.create_time),
        expire_time=time_to_proto(expire_time),
        residency=[_residency(residency, replica)],
    )


def _residency(residency: AdapterResidency | None, replica: str) -> pb.ReplicaResidency:
    if residency is None:
        return pb.ReplicaResidency(replica=replica, residency=common.RESIDENCY_STORED)
    return pb.ReplicaResidency(
        replica=replica,
        residency=f"RESIDENCY_{residency.residency}",
        pinned=residency.pinned,
        running_requests=residency.running_sequences,
        resident_bytes=residency.resident_bytes,
    )


def alias_to_proto(alias: Alias) -> pb.Alias:
    previous = alias.previous_version
    return pb.Alias(
        name=f"{alias.adapter_name}/aliases/{alias.alias}",
        version=f"{alias.adapter_name}/versions/{alias.version}",
        previous_version=f"{alias.adapter_name}/versions/{previous}" if previous is not None else "",
        etag=alias.etag,
        update_time=time_to_proto(alias.update_time),
    )
