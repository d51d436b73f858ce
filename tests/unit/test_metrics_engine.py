"""What metrics tell of the engine: from a snapshot, with names for as many adapters as are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from finetuned_service.engine.histogram import Histogram
from finetuned_service.engine.messages import AdapterResidency, Residency, Snapshot
from finetuned_service.errors import Unavailable
from finetuned_service.metrics.adapters import AdapterNames
from finetuned_service.metrics.engine import EngineLimits, watch_engine
from prometheus_client import CollectorRegistry

LIMITS = EngineLimits(
    running_sequences=4, waiting_sequences=8, adapter_host_bytes=1000, adapter_device_bytes=2000
)
BUSY = AdapterResidency("sha256:b", Residency.DEVICE, False, 2, 30, 14, device_bytes=20)
IDLE = AdapterResidency("sha256:a", Residency.DEVICE, True, 0, 40, 14, device_bytes=25)
READ = AdapterResidency("sha256:c", Residency.HOST, False, 0, 50, 14)
NAMES = {"sha256:b": "tenants/t/adapters/b/versions/1", "sha256:a": "tenants/t/adapters/a/versions/2"}


def snapshot(**changes: object) -> Snapshot:
    steps = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        steps.observe(seconds)
    values: dict[str, object] = {
        "running_sequences": 2,
        "waiting_sequences": 1,
        "kv_tokens_used": 25,
        "kv_tokens_capacity": 100,
        "base_bytes": 500,
        "kv_bytes": 400,
        "adapters": (IDLE, READ, BUSY),
        "counters": {"adapter_evictions": 3.0, "host_evictions": 1.0, "decode_tokens": 7.0},
        "histograms": {"step_seconds": steps.read()},
        "waiting_adapters": ("sha256:c", "sha256:x"),
    }
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


def names(digests: Sequence[str]) -> dict[str, str]:
    return {digest: NAMES[digest] for digest in digests if digest in NAMES}


def page(
    found: Snapshot | None, *, most: int = 8, names=names, vllm_aliases: bool = False
) -> CollectorRegistry:
    registry = CollectorRegistry()
    watch_engine(
        registry, lambda: found, lambda: 2, LIMITS, AdapterNames(most, names), vllm_aliases=vllm_aliases
    )
    return registry


def samples(registry: CollectorRegistry, name: str) -> list[dict[str, str]]:
    return [s.labels for family in registry.collect() for s in family.samples if s.name == name]


def test_an_engine_that_does_not_answer_is_down_and_its_figures_are_gone():
    found = page(None)
    assert found.get_sample_value("finetuned_engine_up") == 0
    assert found.get_sample_value("finetuned_engine_restarts_total") == 2
    assert found.get_sample_value("finetuned_sequences_running") is None


def test_memory_by_use_adds_up():
    found = page(snapshot())
    by_use = {
        use: found.get_sample_value("finetuned_memory_bytes", {"use": use})
        for use in ("base", "kv_cache", "adapters_host", "adapters_device")
    }
    assert by_use == {"base": 500, "kv_cache": 400, "adapters_host": 75, "adapters_device": 45}
    assert found.get_sample_value("finetuned_kv_cache_usage_ratio") == 0.25
    assert found.get_sample_value("finetuned_kv_cache_used_bytes") == 100
    assert found.get_sample_value("finetuned_adapters_resident", {"tier": "device"}) == 2
    assert found.get_sample_value("finetuned_adapters_resident", {"tier": "host"}) == 1
    assert found.get_sample_value("finetuned_adapter_evictions_total", {"tier": "host"}) == 1


def test_histograms_of_the_engine_become_cumulative_buckets():
    found = page(snapshot())
    buckets = [
        found.get_sample_value("finetuned_engine_step_seconds_bucket", {"le": le})
        for le in ("1.0", "2.0", "+Inf")
    ]
    assert buckets == [2, 3, 4]
    assert found.get_sample_value("finetuned_engine_step_seconds_count") == 4
    assert found.get_sample_value("finetuned_engine_step_seconds_sum") == 12.0


def test_adapters_have_the_names_of_their_versions_or_their_digests():
    assert samples(page(snapshot()), "finetuned_adapter_info") == [
        {"adapter": NAMES["sha256:b"], "digest": "sha256:b", "tier": "device", "pinned": "false"},
        {"adapter": NAMES["sha256:a"], "digest": "sha256:a", "tier": "device", "pinned": "true"},
        {"adapter": "sha256:c", "digest": "sha256:c", "tier": "host", "pinned": "false"},
    ]
    (info,) = samples(page(snapshot()), "finetuned_adapter_requests_info")
    assert info == {
        "max_adapters": "4",
        "running_adapters": NAMES["sha256:b"],
        "waiting_adapters": "sha256:c,sha256:x",
    }


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_adapters_are_named_than_allowed(most):
    asked: list[int] = []

    def counted(digests: Sequence[str]) -> dict[str, str]:
        asked.append(len(digests))
        return names(digests)

    many = tuple(
        AdapterResidency(f"sha256:{n}", Residency.DEVICE, False, n % 2, n, 14, device_bytes=n)
        for n in range(100)
    )
    found = page(
        snapshot(adapters=many, waiting_adapters=tuple(a.digest for a in many)), most=most, names=counted
    )
    for name in ("finetuned_adapter_info", "finetuned_adapter_resident_bytes"):
        assert len(samples(found, name)) == most
    for info in samples(found, "finetuned_adapter_requests_info"):
        assert [len(info[key].split(",")) for key in ("running_adapters", "waiting_adapters")] == [most] * 2
    assert len(samples(found, "finetuned_adapter_requests_info")) == min(most, 1)
    assert max(asked, default=0) <= most
    assert found.get_sample_value("finetuned_adapters_waiting") == 100


def test_names_that_cannot_be_looked_up_do_not_take_the_page_with_them():
    def unreachable(_digests: Sequence[str]) -> dict[str, str]:
        raise Unavailable("gone")

    assert samples(page(snapshot(), names=unreachable), "finetuned_adapter_resident_bytes") == [
        {"adapter": "sha256:b"},
        {"adapter": "sha256:a"},
        {"adapter": "sha256:c"},
    ]


def test_vllms_names_are_there_only_when_asked_for():
    assert not [f.name for f in page(snapshot()).collect() if ":" in f.name]
    found = page(snapshot(), vllm_aliases=True)
    assert found.get_sample_value("vllm:num_requests_running") == 2
    assert found.get_sample_value("vllm:num_requests_waiting") == 1
    assert found.get_sample_value("vllm:kv_cache_usage_perc") == 0.25
    assert samples(found, "vllm:lora_requests_info") == [
        {
            "max_lora": "4",
            "running_lora_adapters": NAMES["sha256:b"],
            "waiting_lora_adapters": "sha256:c,sha256:x",
        }
    ]


def test_a_value_belongs_to_the_first_bound_that_it_does_not_exceed():
    histogram = Histogram((1, 2, 5))
    for value in (0, 1, 1.01, 2, 5, 5.01, 100):
        histogram.observe(value)
    found = histogram.read()
    assert found.bounds == (1.0, 2.0, 5.0)
    assert all(low < high for low, high in pairwise(found.bounds))
    assert (found.counts, found.total) == ((2, 2, 1, 2), pytest.approx(114.02))
