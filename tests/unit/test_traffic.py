"""Calls a second and streams at the same time, on a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetuned.v1 import adapter_service_pb2, serving_service_pb2, tenant_service_pb2, tuning_service_pb2
from finetuned_service.errors import QuotaExceeded
from finetuned_service.rpc.admission import tenant_of
from finetuned_service.settings import TenantLimits
from finetuned_service.tenancy import traffic as room
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.traffic import Traffic
from google.protobuf.message import Message


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock: Clock) -> Traffic:
    own = {"slow": TenantLimits(requests_per_second=1, streams=1)}
    return Traffic(lambda t: own.get(t, TenantLimits(requests_per_second=4, streams=2)), clock)


def used(traffic: Traffic, tenant: str) -> dict[Limit, int]:
    return {use.limit: use.used for use in traffic.usage(tenant)}


def refused(call: Callable[[], object]) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refusal:
        call()
    return refusal.value


def test_as_many_calls_at_once_as_a_second_has_and_then_one_at_a_time(traffic, clock) -> None:
    for number in range(4):
        assert used(traffic, "acme")[Limit.REQUESTS_PER_SECOND] == number
        traffic.admit_call("acme")
    error = refused(lambda: traffic.admit_call("acme"))
    assert error.metadata == {
        "limit": "requests_per_second",
        "subject": "tenants/acme",
        "used": "4",
        "allowed": "4",
    }
    assert error.retry_after_seconds == pytest.approx(0.25)
    traffic.admit_call("other")
    clock.seconds += 0.1
    assert refused(lambda: traffic.admit_call("acme")).retry_after_seconds == pytest.approx(0.15)
    clock.seconds += 0.15
    traffic.admit_call("acme")
    refused(lambda: traffic.admit_call("acme"))


def test_a_call_after_the_time_told_is_admitted(traffic, clock) -> None:
    """Whatever the rounding of a sum of many shares of a second."""
    for _ in range(1000):
        try:
            traffic.admit_call("acme")
        except QuotaExceeded as error:
            clock.seconds += error.retry_after_seconds
            traffic.admit_call("acme")


def test_rest_gives_no_more_than_a_second_of_calls(traffic, clock) -> None:
    traffic.admit_call("acme")
    clock.seconds += 3600.0
    for _ in range(4):
        traffic.admit_call("acme")
    refused(lambda: traffic.admit_call("acme"))
    clock.seconds += 0.5
    assert used(traffic, "acme")[Limit.REQUESTS_PER_SECOND] == 2


def test_a_refused_call_takes_nothing(traffic, clock) -> None:
    traffic.admit_call("slow")
    for _ in range(10):
        assert refused(lambda: traffic.admit_call("slow")).retry_after_seconds == pytest.approx(1.0)
    clock.seconds += 1.0
    traffic.admit_call("slow")


def test_tenants_that_rest_are_forgotten(traffic, clock, monkeypatch) -> None:
    monkeypatch.setattr(room, "_MANY_TENANTS", 10)
    for number in range(100):
        traffic.admit_call(f"t{number}")
        clock.seconds += 1.0
    assert len(traffic._paid_until) <= 10


def broken_off(traffic: Traffic) -> None:
    with traffic.stream("acme"):
        assert used(traffic, "acme")[Limit.STREAMS] == 2
        error = refused(lambda: traffic.stream("acme").__enter__())
        assert (error.metadata["limit"], error.retry_after_seconds) == ("streams", 1.0)
        with traffic.stream("slow"):
            raise RuntimeError


def test_streams_are_counted_until_they_end_however_they_end(traffic) -> None:
    with traffic.stream("acme"):
        with pytest.raises(RuntimeError):
            broken_off(traffic)
        assert used(traffic, "acme")[Limit.STREAMS] == 1
    assert traffic._streams == {}


@pytest.mark.parametrize(
    ("request_", "tenant"),
    [
        (tuning_service_pb2.TrainJobRequest(parent="tenants/acme", display_name="tenants/other"), "acme"),
        (tuning_service_pb2.WatchJobRequest(name="tenants/acme/jobs/x"), "acme"),
        (tenant_service_pb2.GetUsageRequest(name="tenants/acme/usage"), "acme"),
        (
            adapter_service_pb2.ImportAdapterRequest(
                start=adapter_service_pb2.ImportAdapterStart(adapter="tenants/acme/adapters/x")
            ),
            "acme",
        ),
        (adapter_service_pb2.ImportAdapterRequest(), None),
        (tuning_service_pb2.WatchJobRequest(name="tenants/NOBODY/jobs/x"), None),
        (serving_service_pb2.GetServerInfoRequest(), None),
        (None, None),
    ],
)
def test_whose_call_it_is(request_: Message | None, tenant: str | None) -> None:
    assert tenant_of(request_) == tenant
