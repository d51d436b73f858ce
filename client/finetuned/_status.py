"""From what gRPC tells about a failed call to an error of `errors.py`; the only reader of google.rpc.

The service sends google.rpc.Status in the trailers with ErrorInfo (domain "finetuned.v1"),
BadRequest, QuotaFailure and RetryInfo. A failure without them comes from the connection, a proxy or
gRPC itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from finetuned.errors import FinetunedError, Violation, error_class
from finetuned.v1 import common_pb2

DOMAIN = "finetuned.v1"
DETAILS_KEY = "grpc-status-details-bin"

_CODES = {int(code.value[0]): code for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound=Message)


class FailedCall(Protocol):
    """What `grpc.RpcError` (sync) and `grpc.aio.AioRpcError` have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def _details(packed: Iterable[any_pb2.Any], kind: type[_Detail]) -> _Detail | None:
    for item in packed:
        found = kind()
        if item.Unpack(found):
            return found
    return None


def _status(call: FailedCall) -> status_pb2.Status:
    # rpc_status.from_call raises where a proxy rewrote the message; losing the details for that
    # would hide the line at fault, so the trailer is read here.
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def from_call(call: FailedCall) -> FinetunedError:
    """The error for a failed call; every call maps to one."""
    packed = _status(call).details
    info = _details(packed, error_details_pb2.ErrorInfo)
    ours = info is not None and info.domain == DOMAIN
    reason = info.reason if info is not None and ours else ""
    bad_request = _details(packed, error_details_pb2.BadRequest)
    quota = _details(packed, error_details_pb2.QuotaFailure)
    retry = _details(packed, error_details_pb2.RetryInfo)
    violations = (
        [Violation(v.field, v.description) for v in bad_request.field_violations] if bad_request else []
    )
    violations += [Violation(v.subject, v.description) for v in quota.violations] if quota else []
    message = call.details() or f"the call ended with {call.code().name}"
    if info is None and call.code() is grpc.StatusCode.UNAVAILABLE:
        message = f"the service cannot be reached: {message}"
    return error_class(call.code(), reason)(
        message,
        reason=reason,
        metadata=dict(info.metadata) if info is not None else {},
        violations=violations,
        retry_after_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        from_service=ours,
    )


def from_error(error: common_pb2.Error) -> FinetunedError:
    """The error for a refusal inside a reply (one item of a batch)."""
    return error_class(_CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.reason)(
        error.message,
        reason=error.reason,
        metadata=dict(error.metadata),
        violations=[Violation(v.field, v.description) for v in error.violations],
        from_service=True,
    )
