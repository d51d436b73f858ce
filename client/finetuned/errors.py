"""Everything a call can raise, as one tree; it mirrors the refusals of the service.

    FinetunedError
    ├── InvalidArgument        what you wrote is wrong; the same call can never succeed
    │   ├── InvalidField         one or more request fields
    │   ├── InvalidData          rows of a dataset, by line
    │   ├── InvalidUpload        chunks, offsets, sizes of an upload
    │   ├── InvalidAdapterFiles  an adapter's files: header, shapes, names, values
    │   └── PromptTooLong        the prompt and its reply do not fit the context
    ├── NotFound               no such resource (or it belongs to another tenant)
    ├── AlreadyExists          the name is taken
    ├── FailedPrecondition     the state of something does not allow the call
    │   ├── JobStateConflict     e.g. cancel of a finished job
    │   ├── RequestIdReused      the request id came before, with another body
    │   ├── AdapterIncompatible  the adapter belongs to another base
    │   ├── RerunRefused         the data of the job to run again has changed
    │   ├── ResourceInUse        something still points to it
    │   ├── TrainingDiverged     the loss is no number; in a job's error, whose last good checkpoint is kept
    │   ├── QualityGateFailed    a quantized base lost more quality than allowed; in a job's error
    │   └── StartRefused         the service could not start; told at its start, never by a call
    ├── Aborted                a concurrent change won: read again, retry
    │   └── EtagMismatch
    ├── OutOfRange             events that are no longer kept
    ├── ResourceExhausted      the server's disk or memory has no room for it
    │   ├── QuotaExceeded        a limit of the tenant is reached; `client.usage()` tells all of them
    │   └── QueueFull            too many requests wait: retry later
    ├── Unimplemented          in the contract, not in the server's build
    ├── Unavailable            no connection, or the service cannot answer now
    ├── DeadlineExceeded       the call's time was over
    ├── Cancelled              the call was cancelled
    ├── Unauthenticated        the API key is missing or wrong
    ├── PermissionDenied       the API key does not allow it
    ├── Internal               the service's own fault, or a reply that makes no sense
    └── JobFailed              raised by `Job.check` only: the job ended without a result

A reason that this client does not know (a newer server) becomes the class of its status.
`_status.py` translates from gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from grpc import StatusCode


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: where it stands and what would be right."""

    field: str
    """Path of the field (`train.lora.rank`), of the row (`line 17`) or of the quota."""
    description: str
    """What was found, what is allowed, and the remedy."""


class FinetunedError(Exception):
    """Root of the tree.

    Args:
        message: one sentence for a person.
        reason: the name of the refusal; the class's own unless the server sent one.
        metadata: machine-readable facts, for example `{"resource": "tenants/a/jobs/b"}`.
        violations: the fields, lines or quotas at fault.
        retry_after_seconds: when the service says that trying again may help.
        from_service: whether the service itself refused. A refusal changed nothing; without one
            (a broken connection) it is open whether the call was carried out.
    """

    code: ClassVar[StatusCode] = StatusCode.UNKNOWN
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
        from_service: bool = False,
    ) -> None:
        super().__init__(message)
        self.message: str = message
        self.reason = reason or type(self).reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations: tuple[Violation, ...] = tuple(violations)
        self.retry_after_seconds: float | None = retry_after_seconds
        self.from_service: bool = from_service


class InvalidArgument(FinetunedError):
    code = StatusCode.INVALID_ARGUMENT


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
    code = StatusCode.NOT_FOUND
    reason = "RESOURCE_NOT_FOUND"


class AlreadyExists(FinetunedError):
    code = StatusCode.ALREADY_EXISTS
    reason = "RESOURCE_EXISTS"


class FailedPrecondition(FinetunedError):
    code = StatusCode.FAILED_PRECONDITION


class JobStateConflict(FailedPrecondition):
    reason = "JOB_STATE_CONFLICT"


class RequestIdReused(FailedPrecondition):
    reason = "REQUEST_ID_REUSED"


class AdapterIncompatible(FailedPrecondition):
    reason = "ADAPTER_INCOMPATIBLE"


class RerunRefused(FailedPrecondition):
    reason = "RERUN_REFUSED"


class ResourceInUse(FailedPrecondition):
    reason = "RESOURCE_IN_USE"


class TrainingDiverged(FailedPrecondition):
    reason = "TRAINING_DIVERGED"


class QualityGateFailed(FailedPrecondition):
    reason = "QUALITY_GATE_FAILED"


class StartRefused(FailedPrecondition):
    reason = "START_REFUSED"


class Aborted(FinetunedError):
    code = StatusCode.ABORTED


class EtagMismatch(Aborted):
    reason = "ETAG_MISMATCH"


class OutOfRange(FinetunedError):
    code = StatusCode.OUT_OF_RANGE
    reason = "EVENTS_TRIMMED"


class ResourceExhausted(FinetunedError):
    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "NO_ROOM"


class QuotaExceeded(ResourceExhausted):
    reason = "QUOTA_EXCEEDED"


class QueueFull(ResourceExhausted):
    reason = "QUEUE_FULL"


class Unimplemented(FinetunedError):
    code = StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED_FEATURE"


class Unavailable(FinetunedError):
    code = StatusCode.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"


class DeadlineExceeded(FinetunedError):
    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(FinetunedError):
    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class Unauthenticated(FinetunedError):
    code = StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(FinetunedError):
    code = StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Internal(FinetunedError):
    code = StatusCode.INTERNAL
    reason = "INTERNAL_FAULT"


class JobFailed(FinetunedError):
    """A job ended without a result; `reason`, `message` and `violations` are those of the job's error.

    Args:
        job: the job's full name.
        state: "FAILED" or "CANCELLED".
    """

    def __init__(
        self,
        message: str,
        *,
        job: str,
        state: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, violations=violations)
        self.job: str = job
        self.state: str = state


def _tree(root: type[FinetunedError]) -> Iterator[type[FinetunedError]]:
    yield root
    for cls in root.__subclasses__():
        yield from _tree(cls)


def error_class(code: StatusCode, reason: str) -> type[FinetunedError]:
    """The class for a refusal: by its reason, else by its status, else the root.

    A reason under another status than its class's own is not trusted: the status decides, because
    callers (and retries) act on it.
    """
    of_status = [cls for cls in _tree(FinetunedError) if cls.code is code and cls is not JobFailed]
    named = [cls for cls in of_status if reason and cls.__dict__.get("reason") == reason]
    return next(iter(named or of_status), FinetunedError)
