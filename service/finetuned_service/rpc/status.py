"""Errors of the house as gRPC statuses with google.rpc details in the trailers."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from finetuned_service.errors import FinetunedError, ResourceExhausted

ERROR_DOMAIN = "finetuned.v1"
"""`ErrorInfo.domain`: reasons are names of ErrorReason without their prefix."""

_MAX_MESSAGE_BYTES, _MAX_VALUE_BYTES, _MAX_VIOLATIONS_BYTES = 1024, 256, 3072
"""gRPC drops trailers above 8 KiB, and the caller would see another status without details. The message
stands in them up to three times; what is long in a refusal is what the caller wrote."""


def status_of(error: FinetunedError) -> status_pb2.Status:
    """The google.rpc.Status: ErrorInfo always, BadRequest, QuotaFailure and RetryInfo where they apply."""
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    metadata = {key: _cut(value, _MAX_VALUE_BYTES) for key, value in error.metadata.items()}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
    ]
    if error.violations:
        share = _MAX_VIOLATIONS_BYTES // len(error.violations) // 2
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(v.field, share), description=_cut(v.description, 2 * share - len(v.field[:share]))
            )
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, ResourceExhausted):
        subject = error.metadata.get("subject", "server")
        failure = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[failure]))
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.status), message=message, details=[_packed(d) for d in details]
    )


def _cut(text: str, max_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode(errors="ignore") + "…"


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
