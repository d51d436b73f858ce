"""What the exit code of a command says; the table in `finetuned --help` is made from this."""

from __future__ import annotations

from enum import IntEnum

from finetuned.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FinetunedError,
    InvalidArgument,
    JobFailed,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)


class ExitCode(IntEnum):
    OK = 0
    OTHER = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNAVAILABLE = 5
    JOB_FAILED = 6
    NOT_ALLOWED = 7
    INTERRUPTED = 130


MEANING = {
    ExitCode.OK: "done",
    ExitCode.OTHER: "any other failure",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.NOT_FOUND: "there is no such resource",
    ExitCode.REFUSED: "the input, or the state of something, does not allow it",
    ExitCode.UNAVAILABLE: "no server, no room, or no time left; trying later may help",
    ExitCode.JOB_FAILED: "the job failed or was cancelled",
    ExitCode.NOT_ALLOWED: "the API key is missing, wrong or not allowed to",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}

_OF_ERROR: dict[type[FinetunedError], ExitCode] = {
    InvalidArgument: ExitCode.REFUSED,
    NotFound: ExitCode.NOT_FOUND,
    AlreadyExists: ExitCode.REFUSED,
    FailedPrecondition: ExitCode.REFUSED,
    Aborted: ExitCode.REFUSED,
    OutOfRange: ExitCode.REFUSED,
    Unimplemented: ExitCode.REFUSED,
    ResourceExhausted: ExitCode.UNAVAILABLE,
    Unavailable: ExitCode.UNAVAILABLE,
    DeadlineExceeded: ExitCode.UNAVAILABLE,
    Cancelled: ExitCode.UNAVAILABLE,
    Unauthenticated: ExitCode.NOT_ALLOWED,
    PermissionDenied: ExitCode.NOT_ALLOWED,
    JobFailed: ExitCode.JOB_FAILED,
}


def exit_code(error: FinetunedError) -> ExitCode:
    """The code for an error; OTHER for the service's own faults."""
    return next((code for kind, code in _OF_ERROR.items() if isinstance(error, kind)), ExitCode.OTHER)
