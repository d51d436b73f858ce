"""Enums, metrics, times and errors that several services share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import grpc
from finetuned.v1 import common_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from finetuned_service.errors import FinetunedError, InvalidField, Violation, from_wire
from finetuned_service.vocabulary import Method, Metric, Task, WeightFormat

Made = TypeVar("Made")

TASKS: Mapping[Task, pb.Task] = {
    Task.TEXT_GENERATION: pb.TASK_TEXT_GENERATION,
    Task.TEXT_CLASSIFICATION: pb.TASK_TEXT_CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION: pb.TASK_TOKEN_CLASSIFICATION,
    Task.FEATURE_EXTRACTION: pb.TASK_FEATURE_EXTRACTION,
    Task.IMAGE_CLASSIFICATION: pb.TASK_IMAGE_CLASSIFICATION,
}


def method_to_proto(method: Method) -> str:
    return f"METHOD_{method}"


def method_from_proto(method: int, field: str) -> Method | None:
    """None for unspecified."""
    name = enum_name(pb.Method, method, "METHOD_", field)
    return Method(name) if name else None


def weight_format_to_proto(weight_format: WeightFormat) -> str:
    return f"WEIGHT_FORMAT_{weight_format}"


def enum_name(enum: Any, value: int, prefix: str, field: str) -> str:
    """The name of an enum value without its prefix; "" for the unspecified one.

    Raises:
        InvalidField: the number is none of the enum's.
    """
    try:
        name = str(enum.Name(value))
    except ValueError as error:
        allowed = ", ".join(enum.keys())
        raise InvalidField.one(field, f"is {value}; allowed: {allowed}") from error
    return "" if name.endswith("_UNSPECIFIED") else name.removeprefix(prefix)


def metrics_to_proto(metrics: Iterable[Metric]) -> list[pb.Metric]:
    return [pb.Metric(name=m.name, value=m.value, higher_is_better=m.higher_is_better) for m in metrics]


def time_to_proto(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def seconds_to_proto(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def error_to_proto(error: FinetunedError) -> pb.Error:
    code = grpc.StatusCode[error.status]
    return pb.Error(
        code=code.value[0],
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        violations=[pb.Violation(field=v.field, description=v.description) for v in error.violations],
    )


def wire_error_to_proto(wire: Mapping[str, object] | None) -> pb.Error | None:
    return None if wire is None else error_to_proto(from_wire(wire))


def optional(message: Any, field: str) -> Any:
    """The value of an `optional` field, or None if the caller did not set it."""
    return getattr(message, field) if message.HasField(field) else None


def given(message: Any, **fields: str) -> dict[str, Any]:
    """Keyword arguments for the `optional` fields that are set: `given(m, our_name="proto_name")`."""
    return {ours: getattr(message, theirs) for ours, theirs in fields.items() if message.HasField(theirs)}


def checked(path: str, make: Callable[..., Made], **values: Any) -> Made:
    """`make(**values)`, with pydantic's refusals as violations under `path`.

    Raises:
        InvalidField: naming every value that is not allowed.
    """
    try:
        return make(**values)
    except ValidationError as error:
        violations = [
            Violation(".".join([path, *map(str, e["loc"])]), f"is {e['input']!r}: {e['msg'].lower()}")
            for e in error.errors()
        ]
        raise InvalidField(
            "; ".join(f"{v.field} {v.description}" for v in violations), violations=violations
        ) from error
