"""Errors: the tree mirrors the service's, every reason arrives as its class, with all its details."""

from __future__ import annotations

from collections.abc import Iterator

import finetuned_service.errors as service_errors
import pytest
from both_clients import open_client
from finetuned import errors
from finetuned._status import DETAILS_KEY, from_call
from finetuned.errors import FinetunedError, Violation, error_class
from finetuned.testing import FakeServer
from finetuned.v1 import error_reason_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name, number in error_reason_pb2.ErrorReason.items()
    if number != error_reason_pb2.ERROR_REASON_UNSPECIFIED
]


def tree(root: type[FinetunedError] = FinetunedError) -> Iterator[type[FinetunedError]]:
    for cls in root.__subclasses__():
        yield cls
        yield from tree(cls)


BY_REASON = {cls.reason: cls for cls in tree() if "reason" in cls.__dict__}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def test_every_reason_of_the_contract_has_a_class() -> None:
    assert sorted(BY_REASON) == sorted(REASONS)


def test_the_tree_is_that_of_the_service() -> None:
    theirs = {cls.reason: cls for cls in service_errors.concrete_errors()}
    assert sorted(theirs) == sorted(BY_REASON)
    for reason, cls in theirs.items():
        ours = BY_REASON[reason]
        assert ours.__name__ == cls.__name__
        assert ours.__bases__[0].__name__ == cls.__bases__[0].__name__
        assert ours.code.name == cls.status.value


def test_the_drawing_shows_every_class() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split("── ")[1].split(" ")[0] for line in errors.__doc__.splitlines() if "── " in line}
    assert drawn == {cls.__name__ for cls in tree()}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_arrives_with_its_details(server: FakeServer, reason: str, kind: str) -> None:
    sent = BY_REASON[reason](
        "what was found; what is allowed",
        metadata={"resource": "tenants/a/jobs/b"},
        violations=[Violation("line 7", "is ü"), Violation("x.y", "is -1")],
        retry_after_seconds=3600.0,
    )
    server.fail("GetJob", sent)
    with open_client(kind, server.endpoint) as client, pytest.raises(FinetunedError) as caught:
        client.jobs.get("b")
    received = caught.value
    assert type(received) is type(sent)
    assert received.reason == reason
    assert received.message == str(received) == sent.message
    assert received.metadata == sent.metadata
    assert received.violations == sent.violations
    assert received.retry_after_seconds == 3600.0
    assert received.from_service


class Ended:
    """What grpc tells about a failed call."""

    def __init__(self, code: StatusCode, details: str | None, trailers: object = ()) -> None:
        self._code = code
        self._details = details
        self._trailers = trailers

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> object:
        return self._trailers


def trailers(reason: str, domain: str = "finetuned.v1") -> tuple[tuple[str, bytes], ...]:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"a": "b"}))
    return ((DETAILS_KEY, status_pb2.Status(details=[packed]).SerializeToString()),)


def test_an_unknown_reason_becomes_the_class_of_its_status() -> None:
    error = from_call(Ended(StatusCode.FAILED_PRECONDITION, "no", trailers("BRAND_NEW")))
    assert type(error) is errors.FailedPrecondition
    assert error.reason == "BRAND_NEW"
    assert error.metadata == {"a": "b"}


def test_a_reason_under_another_status_is_not_trusted() -> None:
    assert type(from_call(Ended(StatusCode.NOT_FOUND, "no", trailers("QUEUE_FULL")))) is errors.NotFound


def test_the_details_of_another_service_are_not_a_refusal_of_ours() -> None:
    error = from_call(Ended(StatusCode.UNAVAILABLE, "proxy", trailers("UPSTREAM", "proxy.example")))
    assert type(error) is errors.Unavailable
    assert error.reason == "SERVICE_UNAVAILABLE"
    assert not error.from_service


@pytest.mark.parametrize("metadata", [None, (), ((DETAILS_KEY, b"\xff\xff"),), ((DETAILS_KEY, "text"),)])
@pytest.mark.parametrize("code", list(StatusCode))
def test_every_status_has_a_class_without_details_too(code: StatusCode, metadata: object) -> None:
    error = from_call(Ended(code, None, metadata))
    assert error.code is (code if error_class(code, "") is not FinetunedError else StatusCode.UNKNOWN)
    assert code.name in error.message
    assert error.violations == ()
    assert error.retry_after_seconds is None
    assert not error.from_service
