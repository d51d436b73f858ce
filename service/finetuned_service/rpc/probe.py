"""`finetuned health`: asks grpc.health.v1 of a server or worker, for probes that run a command.

Kubernetes asks the health port itself; Docker's HEALTHCHECK and a person at a shell use this.
"""

from __future__ import annotations

from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from finetuned_service.settings import Settings


class ProbeSettings(Settings):
    """Ask the health port, as the settings name it, and exit with 0 if it says SERVING."""

    model_config = SettingsConfigDict(cli_prog_name="finetuned health")

    health_name: Literal["serving", "training", "live"] = "serving"
    """What is asked for: serving (the engine answers), training (jobs are taken) or live (the process runs)."""
    health_timeout_seconds: float = Field(default=3.0, gt=0, le=60)
    """How long an answer may take."""


def probe(settings: ProbeSettings) -> str:
    """What the health port says: the status' name, or the code of a call that failed."""
    with grpc.insecure_channel(settings.health_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        check: Any = stub.Check  # pyright: ignore[reportAttributeAccessIssue]  # set in __init__, unknown to its types
        request = health_pb2.HealthCheckRequest(service=settings.health_name)
        try:
            reply: health_pb2.HealthCheckResponse = check(request, timeout=settings.health_timeout_seconds)
        except grpc.RpcError as error:
            return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
