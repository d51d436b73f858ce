"""Prometheus metrics of one replica, under the prefix `finetuned_`.

Never labelled by tenant, adapter or prompt: label sets stay small and fixed. The engine's figures are
read from its last snapshot when Prometheus scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from finetuned_service.engine.messages import Residency, Snapshot

_LATENCY_BUCKETS_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

_ENGINE_COUNTERS: Mapping[str, tuple[str, str]] = {
    "steps": ("finetuned_engine_steps", "Forward passes of the engine."),
    "step_seconds": ("finetuned_engine_step_seconds", "Time spent in forward passes."),
    "prefill_tokens": ("finetuned_engine_prefill_tokens", "Prompt tokens processed."),
    "decode_tokens": ("finetuned_engine_decode_tokens", "Tokens generated."),
    "adapter_loads": ("finetuned_adapter_loads", "Adapters brought into the serving layout."),
    "adapter_evictions": ("finetuned_adapter_evictions", "Adapters evicted from the serving layout."),
    "load_seconds": ("finetuned_adapter_load_seconds", "Time spent loading adapters."),
}


class Metrics:
    """The registry and everything that is counted where it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.build = Info(
            "finetuned_build", "Version, base and digest of this replica.", registry=self.registry
        )
        self.rpcs = Counter(
            "finetuned_rpcs",
            "Finished RPCs by method and status code.",
            ["method", "code"],
            registry=self.registry,
        )
        self.rpc_seconds = Histogram(
            "finetuned_rpc_seconds",
            "Time from the call to its last message.",
            ["method"],
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.rpcs_running = Gauge("finetuned_rpcs_running", "RPCs in progress.", registry=self.registry)
        self.first_token_seconds = Histogram(
            "finetuned_time_to_first_token_seconds",
            "Time from the acceptance of a sequence to its first token.",
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.inter_token_seconds = Histogram(
            "finetuned_inter_token_seconds",
            "Time between messages of new tokens of one sequence, per token.",
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2),
            registry=self.registry,
        )
        self.sequences = Counter(
            "finetuned_sequences",
            "Finished sequences by the kind of model and the reason of their end.",
            ["model", "finish"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "finetuned_tokens", "Tokens of finished sequences.", ["kind"], registry=self.registry
        )
        self.training_tokens = Counter(
            "finetuned_training_tokens", "Tokens trained on, by jobs of this replica.", registry=self.registry
        )

    def watch_engine(self, snapshot: Callable[[], Snapshot | None]) -> None:
        """Expose the engine's figures; `snapshot` returns the last one known."""
        self.registry.register(_EngineCollector(snapshot))

    def watch_jobs(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Expose the number of jobs by state."""
        self.registry.register(_JobCollector(counts))

    def serve(self, host: str, port: int) -> WSGIServer:
        """Serve `/metrics` over HTTP on a thread of its own."""
        server, _thread = start_http_server(port, addr=host, registry=self.registry)
        return server


class _EngineCollector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot | None]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        found = self._snapshot()
        up = GaugeMetricFamily("finetuned_engine_up", "1 while the engine holds the base and answers.")
        up.add_metric([], 0.0 if found is None else 1.0)
        yield up
        if found is None:
            return
        for name, text, value in (
            ("finetuned_sequences_running", "Sequences in the batch.", found.running_sequences),
            ("finetuned_sequences_waiting", "Sequences waiting for a place.", found.waiting_sequences),
            ("finetuned_kv_cache_used_tokens", "Tokens reserved in the KV cache.", found.kv_tokens_used),
            ("finetuned_kv_cache_capacity_tokens", "Size of the KV cache.", found.kv_tokens_capacity),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        memory = GaugeMetricFamily("finetuned_memory_bytes", "What the engine holds, by use.", labels=["use"])
        memory.add_metric(["base"], found.base_bytes)
        memory.add_metric(["kv_cache"], found.kv_bytes)
        memory.add_metric(["adapters"], sum(adapter.resident_bytes for adapter in found.adapters))
        yield memory
        resident = GaugeMetricFamily("finetuned_adapters_resident", "Adapters in memory.", labels=["tier"])
        for tier in (Residency.HOST, Residency.DEVICE):
            resident.add_metric([tier.lower()], sum(a.residency is tier for a in found.adapters))
        yield resident
        yield GaugeMetricFamily(
            "finetuned_adapters_pinned", "Pinned adapters.", value=sum(a.pinned for a in found.adapters)
        )
        for key, (name, text) in _ENGINE_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=found.counters.get(key, 0.0))


class _JobCollector(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("finetuned_jobs", "Jobs by state.", labels=["state"])
        for state, number in self._counts().items():
            family.add_metric([state.lower()], number)
        yield family
