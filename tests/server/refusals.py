"""What a refused call says, read from its status as any gRPC client can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class Refusal:
    code: str
    reason: str
    message: str
    metadata: dict[str, str]
    fields: tuple[str, ...]
    retry_seconds: float | None


def refusal_of(call: Callable[[], Any]) -> Refusal:
    """Run a call that must be refused; streams are read to their end."""
    with pytest.raises(grpc.RpcError) as caught:  # noqa: PT012 - a stream is refused when it is read
        answer = call()
        if isinstance(answer, grpc.Call):
            list(answer)  # type: ignore[call-overload]
    status = rpc_status.from_call(caught.value)
    assert status is not None, "a refusal without details"
    info, fields, retry = error_details_pb2.ErrorInfo(), (), None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            fields = tuple(violation.field for violation in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info_retry = error_details_pb2.RetryInfo()
            detail.Unpack(info_retry)
            retry = info_retry.retry_delay.ToNanoseconds() / 1e9
    assert info.domain == "finetuned.v1"
    code = caught.value.code().name
    return Refusal(code, info.reason, status.message, dict(info.metadata), fields, retry)
