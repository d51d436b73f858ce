"""The engine's figures, read from its last snapshot when Prometheus asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from finetuned_service.engine.messages import HistogramCounts, Residency, Snapshot
from finetuned_service.metrics.adapters import AdapterNames

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily

_COUNTERS: Mapping[str, tuple[str, str]] = {
    "prefill_tokens": ("finetuned_engine_prefill_tokens", "Prompt tokens processed."),
    "prefix_tokens_reused": (
        "finetuned_engine_prefix_tokens_reused",
        "Prompt tokens whose keys and values came from the prefix cache.",
    ),
    "decode_tokens": ("finetuned_engine_decode_tokens", "Tokens processed one at a time, after the prompt."),
    "step_failures": (
        "finetuned_engine_step_failures",
        "Forward passes that raised an error; each of its sequences is tried again alone.",
    ),
    "adapter_loads": ("finetuned_adapter_loads", "Adapters brought into the serving layout."),
    "load_failures": ("finetuned_adapter_load_failures", "Adapters that could not be loaded."),
    "adapter_drains": (
        "finetuned_adapter_drains",
        "Busy adapters that were held back until one that waited had found memory.",
    ),
}
_STEP_HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    "step_seconds": ("finetuned_engine_step_seconds", "Duration of a forward pass with its sampling."),
    "step_sequences": ("finetuned_engine_step_sequences", "Sequences in a forward pass."),
    "step_tokens": ("finetuned_engine_step_tokens", "Tokens in a forward pass, of prompts and new ones."),
}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may use, as the settings have it."""

    running_sequences: int
    waiting_sequences: int
    adapter_host_bytes: int
    adapter_device_bytes: int


def watch_engine(
    registry: CollectorRegistry,
    snapshot: Callable[[], Snapshot | None],
    restarts: Callable[[], int],
    limits: EngineLimits,
    names: AdapterNames,
    *,
    vllm_aliases: bool = False,
) -> None:
    """Expose the engine.

    Args:
        registry: where.
        snapshot: the last one known; None while the engine does not answer.
        restarts: how often the engine was started again.
        limits: see there.
        names: how adapters are named.
        vllm_aliases: tell the gauges by which the Gateway API inference extension routes under vLLM's names
            too, which are its defaults. (promtool objects to their colon.)
    """
    registry.register(_EngineCollector(snapshot, restarts, limits, names, vllm_aliases=vllm_aliases))


class _EngineCollector(Collector):
    def __init__(
        self,
        snapshot: Callable[[], Snapshot | None],
        restarts: Callable[[], int],
        limits: EngineLimits,
        names: AdapterNames,
        *,
        vllm_aliases: bool,
    ) -> None:
        self._snapshot = snapshot
        self._restarts = restarts
        self._limits = limits
        self._names = names
        self._vllm_aliases = vllm_aliases

    def collect(self) -> Iterable[Family]:
        found = self._snapshot()
        yield _gauge(
            "finetuned_engine_up", "1 while the engine holds the base and answers.", float(found is not None)
        )
        yield CounterMetricFamily(
            "finetuned_engine_restarts", "Starts of the engine after its first.", value=self._restarts()
        )
        yield _by(
            "finetuned_sequences_limit",
            "The most sequences in the batch, and waiting.",
            "state",
            {"running": self._limits.running_sequences, "waiting": self._limits.waiting_sequences},
        )
        yield _by(
            "finetuned_adapter_memory_limit_bytes",
            "Memory that adapters may take.",
            "tier",
            {"host": self._limits.adapter_host_bytes, "device": self._limits.adapter_device_bytes},
        )
        if found is not None:
            yield from _batch(found)
            yield from _memory(found)
            yield from _work(found)
            yield from self._adapters(found)
            if self._vllm_aliases:
                yield from self._aliases(found)

    def _adapters(self, found: Snapshot) -> Iterator[Family]:
        info = GaugeMetricFamily(
            "finetuned_adapter_info",
            "1 for each adapter in memory, as many as are named (metrics_max_adapters).",
            labels=["adapter", "digest", "tier", "pinned"],
        )
        size = GaugeMetricFamily(
            "finetuned_adapter_resident_bytes", "Memory of an adapter, all copies.", labels=["adapter"]
        )
        running = GaugeMetricFamily(
            "finetuned_adapter_sequences_running",
            "Sequences in the batch that use an adapter.",
            labels=["adapter"],
        )
        # A digest has one name here, but two digests never share one: names are of versions.
        for name, adapter in self._names.chosen(found.adapters):
            pinned = str(adapter.pinned).lower()
            info.add_metric([name, adapter.digest, adapter.residency.lower(), pinned], 1)
            size.add_metric([name], adapter.resident_bytes)
            running.add_metric([name], adapter.running_sequences)
        yield from (info, size, running, self._requests("finetuned_adapter_requests_info", "adapters", found))

    def _requests(self, metric: str, what: str, found: Snapshot) -> GaugeMetricFamily:
        """What the Gateway API inference extension calls LoRA info; its value is the time."""
        family = GaugeMetricFamily(
            metric,
            "Adapters of running and of waiting sequences, as many as are named; the value is the time.",
            labels=[f"max_{what}", f"running_{what}", f"waiting_{what}"],
        )
        if self._names.most:
            running = [a.digest for a in found.adapters if a.running_sequences]
            family.add_metric(
                [
                    # A batch cannot hold more adapters than sequences.
                    str(self._limits.running_sequences),
                    ",".join(self._names.named(running)),
                    ",".join(self._names.named(found.waiting_adapters)),
                ],
                time.time(),
            )
        return family

    def _aliases(self, found: Snapshot) -> Iterator[Family]:
        yield _gauge("vllm:num_requests_running", "finetuned_sequences_running.", found.running_sequences)
        yield _gauge("vllm:num_requests_waiting", "finetuned_sequences_waiting.", found.waiting_sequences)
        yield _gauge("vllm:kv_cache_usage_perc", "finetuned_kv_cache_usage_ratio.", _kv_usage(found))
        requests = self._requests("vllm:lora_requests_info", "lora", found)
        requests.samples = [
            sample._replace(
                labels={
                    key if key == "max_lora" else f"{key}_adapters": value
                    for key, value in sample.labels.items()
                }
            )
            for sample in requests.samples
        ]
        yield requests


def _batch(found: Snapshot) -> Iterator[Family]:
    yield _gauge("finetuned_sequences_running", "Sequences in the batch.", found.running_sequences)
    yield _gauge("finetuned_sequences_waiting", "Sequences waiting for a place.", found.waiting_sequences)
    yield _gauge("finetuned_tenants_waiting", "Tenants with sequences in the queue.", found.waiting_tenants)
    yield _gauge(
        "finetuned_queue_age_seconds",
        "How long the sequence that waits longest has waited; 0 if none waits.",
        found.queue_age_seconds,
    )
    yield _gauge("finetuned_kv_cache_used_tokens", "Tokens reserved in the KV cache.", found.kv_tokens_used)
    yield _gauge("finetuned_kv_cache_capacity_tokens", "Size of the KV cache.", found.kv_tokens_capacity)
    yield _gauge("finetuned_kv_cache_usage_ratio", "Reserved part of the KV cache, 0 to 1.", _kv_usage(found))


def _memory(found: Snapshot) -> Iterator[Family]:
    device_bytes = sum(adapter.device_bytes for adapter in found.adapters)
    host_bytes = sum(adapter.resident_bytes for adapter in found.adapters) - device_bytes
    yield _by(
        "finetuned_memory_bytes",
        "What the engine holds, by use; of the KV cache all that it may take.",
        "use",
        {
            "base": found.base_bytes,
            "kv_cache": found.kv_bytes,
            "adapters_host": host_bytes,
            "adapters_device": device_bytes,
        },
    )
    yield _gauge(
        "finetuned_kv_cache_used_bytes",
        "Reserved part of the KV cache.",
        round(found.kv_bytes * _kv_usage(found)),
    )
    tiers = {
        tier.lower(): sum(a.residency is tier for a in found.adapters)
        for tier in (Residency.HOST, Residency.DEVICE)
    }
    yield _by(
        "finetuned_adapters_resident", "Adapters in memory, by the highest tier they are in.", "tier", tiers
    )
    pinned = sum(a.pinned for a in found.adapters)
    yield _gauge("finetuned_adapters_pinned", "Pinned adapters.", pinned)
    yield _gauge(
        "finetuned_adapters_waiting",
        "Different adapters that waiting sequences ask for.",
        len(found.waiting_adapters),
    )


def _work(found: Snapshot) -> Iterator[Family]:
    for key, (name, text) in _COUNTERS.items():
        yield CounterMetricFamily(name, text, value=found.counters.get(key, 0.0))
    evictions = CounterMetricFamily(
        "finetuned_adapter_evictions", "Adapters that left a tier, for others or on request.", labels=["tier"]
    )
    evictions.add_metric(["device"], found.counters.get("adapter_evictions", 0.0))
    evictions.add_metric(["host"], found.counters.get("host_evictions", 0.0))
    yield evictions
    deadlines = CounterMetricFamily(
        "finetuned_deadlines_exceeded",
        "Sequences that ended for the deadline of their call: refused at once by estimate, in the queue, running.",
        labels=["stage"],
    )
    for stage in ("estimate", "queue", "running"):
        deadlines.add_metric([stage], found.counters.get(f"deadlines_{stage}", 0.0))
    yield deadlines
    for key, (name, text) in _STEP_HISTOGRAMS.items():
        yield _histogram(HistogramMetricFamily(name, text, labels=[]), [], found.histograms.get(key))
    loads = HistogramMetricFamily(
        "finetuned_adapter_load_seconds", "Duration of the way of an adapter into a tier.", labels=["tier"]
    )
    _histogram(loads, ["host"], found.histograms.get("read_seconds"))
    yield _histogram(loads, ["device"], found.histograms.get("fill_seconds"))


def _kv_usage(found: Snapshot) -> float:
    return found.kv_tokens_used / found.kv_tokens_capacity if found.kv_tokens_capacity else 0.0


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(
    family: HistogramMetricFamily, labels: list[str], found: HistogramCounts | None
) -> HistogramMetricFamily:
    if found is not None:
        bounds = [*map(str, found.bounds), "+Inf"]
        family.add_metric(
            labels, list(zip(bounds, accumulate(found.counts), strict=True)), sum_value=found.total
        )
    return family
