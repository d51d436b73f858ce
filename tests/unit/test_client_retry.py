"""What is tried again, how soon, and when to give up; decided without a network."""

from __future__ import annotations

import random

import pytest
from finetuned._calls.call import Call, Kind, Method, StreamCall
from finetuned._resume import StreamProgress
from finetuned._retry import Attempts, Deadlines, RetryPolicy
from finetuned.errors import (
    Aborted,
    DeadlineExceeded,
    FinetunedError,
    Internal,
    NotFound,
    QuotaExceeded,
    ResourceExhausted,
    Unavailable,
)
from finetuned.v1 import tuning_service_pb2 as pb

POLICY = RetryPolicy(attempts=4, first_delay_seconds=1.0, factor=2.0, max_delay_seconds=3.0)
BROKEN = Unavailable("connection reset")
REFUSED = Unavailable("starting", from_service=True)
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(7)


def test_delays_grow_to_a_limit_with_jitter() -> None:
    attempts = Attempts(RetryPolicy(attempts=99, first_delay_seconds=1.0, max_delay_seconds=3.0), HOUR)
    delays = [attempts.delay_seconds(BROKEN) for _ in range(6)]
    for delay, ceiling in zip(delays, [1.0, 2.0, 3.0, 3.0, 3.0, 3.0], strict=True):
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(delays)) == 6


def test_attempts_are_counted() -> None:
    attempts = Attempts(POLICY, HOUR)
    for _ in range(POLICY.attempts - 1):
        attempts.delay_seconds(BROKEN)
    with pytest.raises(Unavailable) as raised:
        attempts.delay_seconds(BROKEN)
    assert raised.value is BROKEN


def test_patience_counts_time_only() -> None:
    attempts = Attempts(POLICY, HOUR, patient=True)
    for _ in range(50):
        attempts.delay_seconds(BROKEN)


def test_patience_that_ends_says_what_it_waited_for() -> None:
    over = DeadlineExceeded("over")
    attempts = Attempts(POLICY, HOUR, patient=True)
    attempts.delay_seconds(REFUSED)
    with pytest.raises(Unavailable) as raised:
        attempts.delay_seconds(over)
    assert raised.value is REFUSED
    with pytest.raises(DeadlineExceeded):
        Attempts(POLICY, HOUR, patient=True).delay_seconds(over)


def test_the_service_says_when() -> None:
    later = ResourceExhausted("full", retry_after_seconds=20.0, from_service=True)
    assert Attempts(POLICY, HOUR).delay_seconds(later) == 20.0
    with pytest.raises(ResourceExhausted):
        Attempts(POLICY, 10.0).delay_seconds(later)


def test_a_quota_is_waited_for_only_if_it_is_soon_free() -> None:
    soon = QuotaExceeded("streams", retry_after_seconds=1.5, from_service=True)
    assert Attempts(POLICY, HOUR).delay_seconds(soon) >= 1.5
    with pytest.raises(QuotaExceeded):
        Attempts(POLICY, HOUR).delay_seconds(QuotaExceeded("datasets", retry_after_seconds=60.0))


@pytest.mark.parametrize(
    "error",
    [ResourceExhausted("full"), NotFound("no"), Aborted("no"), Internal("no"), DeadlineExceeded("no")],
)
def test_what_is_never_repeated(error: FinetunedError) -> None:
    with pytest.raises(type(error)):
        Attempts(POLICY, HOUR).delay_seconds(error)


def test_what_may_have_been_carried_out_is_repeated_only_if_that_is_harmless() -> None:
    with pytest.raises(Unavailable):
        Attempts(POLICY, HOUR, repeatable=False).delay_seconds(BROKEN)
    assert Attempts(POLICY, HOUR, repeatable=False).delay_seconds(REFUSED) > 0


def test_time_is_over() -> None:
    attempts = Attempts(POLICY, 0.0)
    assert attempts.remaining_seconds() > 0  # gRPC takes no timeout of zero
    with pytest.raises(Unavailable):
        attempts.delay_seconds(BROKEN)


def test_an_upload_that_gets_further_may_fail_as_often_again() -> None:
    attempts = Attempts(POLICY, HOUR)
    for _ in range(POLICY.attempts - 1):
        attempts.delay_seconds(BROKEN)
    assert attempts.offset_after(10, 10) == 10
    assert attempts.offset_after(10, 20) == 20
    for _ in range(POLICY.attempts - 1):
        attempts.delay_seconds(BROKEN)
    with pytest.raises(Unavailable):
        attempts.delay_seconds(BROKEN)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_call_has_a_deadline(kind: Kind) -> None:
    assert Deadlines().seconds(kind) == getattr(Deadlines(), f"{kind.value}_seconds")
    assert Deadlines.of(7.0).seconds(kind) == 7.0


def test_a_call_may_bring_its_own_deadline() -> None:
    method = Method("TuningService", "GetJob", pb.GetJobResponse)
    call = Call(method, pb.GetJobRequest(), str, timeout_seconds=3.0, repeatable=False, patient=True)
    attempts = Attempts.of_call(call, POLICY, Deadlines())
    assert attempts.timeout_seconds == 3.0
    assert (attempts.repeatable, attempts.patient) == (False, True)


def watch(timeout_seconds: float | None = None) -> StreamProgress[int]:
    """A stream of numbers that ends with 3."""

    def resume(number: int) -> pb.WatchJobRequest | None:
        return None if number == 3 else pb.WatchJobRequest(after_event=number)

    method = Method("TuningService", "WatchJob", pb.WatchJobResponse)
    call = StreamCall(
        method, pb.WatchJobRequest(), int, Kind.WATCH, resume=resume, timeout_seconds=timeout_seconds
    )
    return StreamProgress(call, POLICY, Deadlines())


def test_a_watch_goes_on_after_the_last_event() -> None:
    progress = watch()
    assert progress.timeout_seconds() == Deadlines().watch_seconds
    progress.received(2)
    assert progress.failed(BROKEN) > 0
    assert progress.request == pb.WatchJobRequest(after_event=2)


def test_a_watch_that_ends_before_the_last_event_is_opened_again() -> None:
    progress = watch()
    progress.timeout_seconds()
    progress.received(1)
    progress.ended()
    assert progress.request == pb.WatchJobRequest(after_event=1)
    progress.timeout_seconds()
    progress.ended()  # nothing came: there is nothing more
    assert progress.request is None


def test_nothing_matters_after_the_last_event() -> None:
    progress = watch()
    progress.timeout_seconds()
    progress.received(3)
    assert progress.failed(Internal("reset")) == 0.0
    assert progress.request is None


def test_a_watch_has_no_more_time_than_asked_for() -> None:
    progress = watch(timeout_seconds=0.5)
    assert progress.timeout_seconds() <= 0.5
    with pytest.raises(Unavailable):
        progress.failed(Unavailable("later", retry_after_seconds=2.0))
