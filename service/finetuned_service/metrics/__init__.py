"""Prometheus metrics under the prefix `finetuned_`: what they are is in docs/metrics.md.

Three kinds: what is counted where it happens (`server.py`, `jobs.py`), what the engine process counted
(`engine.py`), and what is looked up when Prometheus asks. Labels have few and fixed values; adapters are
named only up to a limit, tenants by no label of their own. A worker that runs jobs apart from a server has
`new_registry`, `JobMetrics`, `watch_data_directory`, `watch_processes` and `serve`.
"""

from finetuned_service.metrics.exposition import new_registry, serve
from finetuned_service.metrics.jobs import JobMetrics
from finetuned_service.metrics.machine import watch_data_directory, watch_processes
from finetuned_service.metrics.replica import watch_replica
from finetuned_service.metrics.server import ServerMetrics
from finetuned_service.metrics.sweeps import SweepMetrics

__all__ = [
    "JobMetrics",
    "ServerMetrics",
    "SweepMetrics",
    "new_registry",
    "serve",
    "watch_data_directory",
    "watch_processes",
    "watch_replica",
]
