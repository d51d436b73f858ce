"""grpc.health.v1 on a port and threads of its own, so that no load on the API fails a probe.

Names: "" and "serving" (the engine answers), "training" (jobs are taken), "live" (the process runs).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from finetuned_service.errors import StartRefused

SERVING, TRAINING, LIVE = "serving", "training", "live"
_THREADS = 2


class HealthServer:
    """Serves the states that the composition root sets."""

    def __init__(self, address: str) -> None:
        self._servicer = health.HealthServicer()
        self._draining = False
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="health"))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartRefused(
                f"health_address {address} cannot be bound; is another server running?"
            ) from error
        for name in ("", SERVING, TRAINING):
            self.set(name, serving=False)
        self.set(LIVE, serving=True)

    def start(self) -> None:
        self._server.start()

    def set(self, name: str, *, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        if not self._draining:
            self._servicer.set(name, status)

    def drain(self) -> None:
        """NOT_SERVING from now on, so that load balancers stop sending; the process is still LIVE."""
        for name in ("", SERVING, TRAINING):
            self.set(name, serving=False)
        self._draining = True

    def stop(self) -> None:
        self._server.stop(grace=0).wait()
