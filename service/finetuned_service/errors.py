"""Every refusal the service can make, as one tree.

    FinetunedError
    ├── InvalidArgument        what the caller wrote is wrong; the same call can never succeed
    │   ├── InvalidField         one or more request fields
    │   ├── InvalidData          rows of a dataset, by line
    │   ├── InvalidUpload        chunks, offsets, sizes of an upload
    │   ├── InvalidAdapterFiles  an adapter's files: header, shapes, names, values
    │   └── PromptTooLong        the prompt and its reply do not fit the context
    ├── NotFound               no such resource (or it belongs to another tenant)
    ├── AlreadyExists          the name is taken
    ├── FailedPrecondition     the state of something does not allow the call
    │   ├── JobStateConflict     e.g. cancel of a finished job
    │   ├── RerunRefused         a job's data is not what it was
    │   ├── RequestIdReused      the request id came before, with another body
    │   ├── AdapterIncompatible  the adapter belongs to another base
    │   ├── ResourceInUse        something still points to it
    │   ├── TrainingDiverged     the loss is no number; the last good checkpoint is kept
    │   ├── QualityGateFailed    a quantized base lost more quality than allowed
    │   └── StartRefused         the service cannot start with what it found
    ├── Aborted                a concurrent change won: read again, retry
    │   └── EtagMismatch
    ├── OutOfRange             events that are no longer kept
    ├── ResourceExhausted      the server's disk or memory has no room for it
    │   ├── QuotaExceeded        a limit of the tenant is reached
    │   └── QueueFull            too many requests wait: retry later
    ├── Unimplemented          in the contract, not in this build; names the feature
    ├── Unavailable            the service cannot answer now (starting, stopping, engine restarting)
    ├── Unauthenticated        no credentials, or ones that are not accepted
    ├── PermissionDenied       the caller's role does not allow it
    ├── DeadlineExceeded       the call's time was over before it could be served
    ├── Cancelled              the caller went away
    └── Internal               our own fault: an opaque id, never a path, prompt or token

To add one: subclass the branch whose gRPC status fits, give it a reason listed in
`protos/finetuned/v1/error_reason.proto`, and add an example to the table in
`tests/unit/test_errors.py`, which walks this tree.

This module knows neither gRPC nor torch: `rpc/errors.py` translates.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, final


class Status(StrEnum):
    """Canonical gRPC status names (https://grpc.io/docs/guides/status-codes/)."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: where it stands and what would be right."""

    field: str
    """Path of the field (`train.lora.rank`) or of the row (`line 17`)."""
    description: str
    """What was found, what is allowed, and the remedy."""


class FinetunedError(Exception):
    """Root of all refusals. Concrete classes set `status` and `reason`.

    Args:
        message: one sentence for a person: what was found, what is allowed, the remedy.
        metadata: machine-readable facts that go into the ErrorInfo; never secrets, prompts or paths.
        violations: the fields or lines at fault, at most `MAX_VIOLATIONS` are kept.
        retry_after_seconds: when trying again may help; None where it cannot.
    """

    MAX_VIOLATIONS: ClassVar[int] = 20
    status: ClassVar[Status] = Status.INTERNAL
    reason: ClassVar[str] = "INTERNAL_FAULT"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations[: self.MAX_VIOLATIONS])
        self.retry_after_seconds = retry_after_seconds

    def to_wire(self) -> dict[str, object]:
        """Plain values for another process or the job record; `from_wire` restores the class."""
        return {
            "reason": self.reason,
            "message": self.message,
            "metadata": self.metadata,
            "violations": [[v.field, v.description] for v in self.violations],
            "retry_after_seconds": self.retry_after_seconds,
        }


class InvalidArgument(FinetunedError):
    status = Status.INVALID_ARGUMENT


class InvalidField(InvalidArgument):
    reason = "INVALID_FIELD"

    @classmethod
    def one(cls, field: str, description: str) -> InvalidField:
        """The common case: a single field at fault."""
        return cls(f"{field}: {description}", violations=[Violation(field, description)])


class InvalidData(InvalidArgument):
    reason = "INVALID_DATA"


class InvalidUpload(InvalidArgument):
    reason = "INVALID_UPLOAD"


class InvalidAdapterFiles(InvalidArgument):
    reason = "INVALID_ADAPTER_FILES"


class PromptTooLong(InvalidArgument):
    reason = "PROMPT_TOO_LONG"


class NotFound(FinetunedError):
    status = Status.NOT_FOUND
    reason = "RESOURCE_NOT_FOUND"

    @classmethod
    def resource(cls, name: str) -> NotFound:
        return cls(
            f"{name!r} does not exist or is not yours; the List calls show what exists",
            metadata={"resource": name},
        )


class AlreadyExists(FinetunedError):
    status = Status.ALREADY_EXISTS
    reason = "RESOURCE_EXISTS"


class FailedPrecondition(FinetunedError):
    status = Status.FAILED_PRECONDITION


class JobStateConflict(FailedPrecondition):
    reason = "JOB_STATE_CONFLICT"


class RerunRefused(FailedPrecondition):
    reason = "RERUN_REFUSED"


class RequestIdReused(FailedPrecondition):
    reason = "REQUEST_ID_REUSED"


class AdapterIncompatible(FailedPrecondition):
    reason = "ADAPTER_INCOMPATIBLE"


class ResourceInUse(FailedPrecondition):
    reason = "RESOURCE_IN_USE"


class TrainingDiverged(FailedPrecondition):
    reason = "TRAINING_DIVERGED"


class QualityGateFailed(FailedPrecondition):
    reason = "QUALITY_GATE_FAILED"


class StartRefused(FailedPrecondition):
    reason = "START_REFUSED"


class Aborted(FinetunedError):
    status = Status.ABORTED


class EtagMismatch(Aborted):
    reason = "ETAG_MISMATCH"


class OutOfRange(FinetunedError):
    status = Status.OUT_OF_RANGE
    reason = "EVENTS_TRIMMED"


class ResourceExhausted(FinetunedError):
    status = Status.RESOURCE_EXHAUSTED
    reason = "NO_ROOM"


class QuotaExceeded(ResourceExhausted):
    reason = "QUOTA_EXCEEDED"


class QueueFull(ResourceExhausted):
    reason = "QUEUE_FULL"


class Unimplemented(FinetunedError):
    status = Status.UNIMPLEMENTED
    reason = "UNIMPLEMENTED_FEATURE"

    @classmethod
    def feature(cls, name: str, instead: str) -> Unimplemented:
        """`name` is the contract's own word for it, `instead` what works today."""
        return cls(
            f"{name} is in the contract but not in this build; available: {instead}",
            metadata={"feature": name},
        )


class Unavailable(FinetunedError):
    status = Status.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"


class Unauthenticated(FinetunedError):
    status = Status.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(FinetunedError):
    status = Status.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class DeadlineExceeded(FinetunedError):
    status = Status.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(FinetunedError):
    status = Status.CANCELLED
    reason = "CANCELLED"


class Internal(FinetunedError):
    status = Status.INTERNAL
    reason = "INTERNAL_FAULT"

    @classmethod
    def opaque(cls) -> Internal:
        """An error for the caller that carries only an id; log the cause under the same id."""
        fault_id = uuid.uuid4().hex[:12]
        return cls(
            f"internal fault {fault_id}; the server's log has the cause under this id",
            metadata={"fault_id": fault_id},
        )


def concrete_errors(root: type[FinetunedError] = FinetunedError) -> Iterator[type[FinetunedError]]:
    """All classes of the tree that carry a reason of their own, depth first."""
    for cls in root.__subclasses__():
        if "reason" in cls.__dict__:
            yield cls
        yield from concrete_errors(cls)


def from_wire(wire: Mapping[str, object]) -> FinetunedError:
    """The error that `to_wire` described; an unknown reason becomes Internal with the same message."""
    by_reason = {cls.reason: cls for cls in concrete_errors()}
    cls = by_reason.get(str(wire["reason"]), Internal)
    metadata = wire.get("metadata")
    violations = wire.get("violations")
    retry = wire.get("retry_after_seconds")
    return cls(
        str(wire["message"]),
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {},
        violations=[Violation(str(f), str(d)) for f, d in violations] if isinstance(violations, list) else (),
        retry_after_seconds=float(retry) if isinstance(retry, (int, float)) else None,
    )
