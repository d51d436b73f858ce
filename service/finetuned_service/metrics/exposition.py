"""The registry and the page that Prometheus reads."""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)


def new_registry(**build: str) -> CollectorRegistry:
    """A registry with what every process tells; `build` are the labels of `finetuned_build_info`."""
    # A series for the birth of each series doubles their number; resets show without it.
    disable_created_metrics()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Info("finetuned_build", "Version of the service, and what this process serves.", registry=registry).info(
        build
    )
    return registry


def serve(registry: CollectorRegistry, address: str) -> WSGIServer:
    """Serve `/metrics` over HTTP on a thread of its own.

    Args:
        registry: what to show.
        address: host and port.

    Raises:
        OSError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    server, _thread = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    return server
