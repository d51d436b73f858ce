"""The gRPC server of the API: servicers, interceptor, reflection, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetuned.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    base_service_pb2,
    base_service_pb2_grpc,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    serving_service_pb2,
    serving_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    tuning_service_pb2,
    tuning_service_pb2_grpc,
)
from grpc import aio
from grpc_reflection.v1alpha import reflection

from finetuned_service.errors import StartRefused
from finetuned_service.metrics import ServerMetrics
from finetuned_service.rpc.adapters import AdapterServicer
from finetuned_service.rpc.admission import Admission
from finetuned_service.rpc.bases import BaseServicer
from finetuned_service.rpc.datasets import DatasetServicer
from finetuned_service.rpc.door import Door
from finetuned_service.rpc.interceptor import Boundary
from finetuned_service.rpc.serving import MAX_MESSAGE_BYTES, ServingServicer
from finetuned_service.rpc.tenants import TenantServicer
from finetuned_service.rpc.tuning import TuningServicer
from finetuned_service.tenancy.traffic import Traffic

_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Clients behind a headless service find new replicas when their connection ends now and then.
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 10 * 60 * 1000),
    # Two servers on one port would answer in turn; the second is refused instead.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Servicers:
    tuning: TuningServicer
    serving: ServingServicer
    datasets: DatasetServicer
    adapters: AdapterServicer
    bases: BaseServicer
    tenants: TenantServicer


def build_server(
    servicers: Servicers, metrics: ServerMetrics, traffic: Traffic, door: Door, address: str
) -> tuple[aio.Server, int]:
    """The server, not started yet, and its port.

    Raises:
        StartRefused: the address cannot be bound.
    """
    # A caller is known, and names what is its own, before the call counts against a tenant's limits.
    interceptors = [Boundary(metrics, door.authenticator), Admission(traffic)]
    server = aio.server(interceptors=interceptors, options=list(_OPTIONS))
    tuning_service_pb2_grpc.add_TuningServiceServicer_to_server(servicers.tuning, server)
    serving_service_pb2_grpc.add_ServingServiceServicer_to_server(servicers.serving, server)
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(servicers.datasets, server)
    adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(servicers.adapters, server)
    base_service_pb2_grpc.add_BaseServiceServicer_to_server(servicers.bases, server)
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(servicers.tenants, server)
    modules = (
        tuning_service_pb2,
        serving_service_pb2,
        dataset_service_pb2,
        adapter_service_pb2,
        base_service_pb2,
        tenant_service_pb2,
    )
    names = [service.full_name for m in modules for service in m.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    try:
        if door.certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, door.certificate.credentials())
    except RuntimeError as error:
        raise StartRefused(f"listen_address {address} cannot be bound; is another server running?") from error
    return server, port
