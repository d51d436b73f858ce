"""Errors of the house as gRPC statuses with google.rpc details in the trailers."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from finetuned_service.errors import FinetunedError, ResourceExhausted

ERROR_DOMAIN = "finetuned.v1"
"""`ErrorInfo.domain`: reasons are names of ErrorReason without their prefix."""


def status_of(error: FinetunedError) -> status_pb2.Status:
    """The google.rpc.Status: ErrorInfo always, BadRequest, QuotaFailure and RetryInfo where they apply."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, ResourceExhausted):
        subject = error.metadata.get("subject", "server")
        failure = error_details_pb2.QuotaFailure.Violation(subject=subject, description=error.message)
        details.append(error_details_pb2.QuotaFailure(violations=[failure]))
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.status), message=error.message, details=[_packed(d) for d in details]
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
