"""Base models."""

from __future__ import annotations

from finetuned.v1 import base_service_pb2 as pb

from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.rpc.convert.common import time_to_proto, weight_format_to_proto


def base_to_proto(base: BaseManifest, *, resident: bool) -> pb.Base:
    return pb.Base(
        name=base.name,
        digest=base.digest,
        root_digest=base.root_digest,
        architecture=base.architecture,
        weight_format=weight_format_to_proto(base.weight_format),
        parameters=base.parameters,
        weight_bytes=base.weight_bytes,
        context_tokens=base.context_tokens,
        source=base.source,
        recipe=base.recipe,
        resident=resident,
        create_time=time_to_proto(base.create_time),
        family=f"MODEL_FAMILY_{base.family}",
    )
