"""Errors of `finetuned.errors` as gRPC sends them: the reverse of `finetuned._status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from finetuned._status import DETAILS_KEY, DOMAIN
from finetuned.errors import FinetunedError, ResourceExhausted
from finetuned.v1 import common_pb2


def _details(error: FinetunedError) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    if error.violations and isinstance(error, ResourceExhausted):
        yield error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(subject=item.field, description=item.description)
                for item in error.violations
            ]
        )
    elif error.violations:
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=item.field, description=item.description)
                for item in error.violations
            ]
        )
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def abort(context: grpc.ServicerContext, error: FinetunedError, *, broken: bool = False) -> NoReturn:
    """End a call with an error; a broken one looks like a lost connection and carries no details."""
    if not broken:
        packed: list[any_pb2.Any] = []
        for detail in _details(error):
            item = any_pb2.Any()
            item.Pack(detail)
            packed.append(item)
        status = status_pb2.Status(code=code_number(error), message=error.message, details=packed)
        context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(error.code, error.message)


def code_number(error: FinetunedError) -> int:
    return int(error.code.value[0])


def to_message(error: FinetunedError) -> common_pb2.Error:
    """An error inside a reply or a job."""
    return common_pb2.Error(
        code=code_number(error),
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        violations=[
            common_pb2.Violation(field=item.field, description=item.description) for item in error.violations
        ],
    )
