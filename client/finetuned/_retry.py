"""Deadlines, and what is tried again; pure decisions, the transports do the waiting.

One mechanism for all: C-core's own retry policy (service config) knows neither RetryInfo nor what
the caller may repeat, and would multiply these attempts. What C-core does by itself, sending again
what never left the client, stays on.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, fields
from typing import Any, final

from finetuned._calls.call import Call, Kind
from finetuned.errors import DeadlineExceeded, FinetunedError, QuotaExceeded, ResourceExhausted, Unavailable


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a call may take with all its retries, by kind of call."""

    read_seconds: float = 15.0
    """Get, List, server_info."""
    write_seconds: float = 60.0
    """Calls that change something; starting a job reads its data."""
    load_seconds: float = 120.0
    """Bringing an adapter into memory."""
    transfer_seconds: float = 3600.0
    """Uploads, imports and exports."""
    generate_seconds: float = 300.0
    """A reply, from the request to its last token."""
    watch_seconds: float = 300.0
    """One connection of a watch; also how long it looks for a server that went away."""

    @classmethod
    def of(cls, seconds: float) -> Deadlines:
        """The same deadline for every kind."""
        return cls(**{item.name: seconds for item in fields(cls)})

    def seconds(self, kind: Kind) -> float:
        match kind:
            case Kind.READ:
                return self.read_seconds
            case Kind.WRITE:
                return self.write_seconds
            case Kind.LOAD:
                return self.load_seconds
            case Kind.TRANSFER:
                return self.transfer_seconds
            case Kind.GENERATE:
                return self.generate_seconds
            case Kind.WATCH:
                return self.watch_seconds


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a call is tried again."""

    attempts: int = 5
    """With the first one; 1 never retries."""
    first_delay_seconds: float = 0.1
    factor: float = 2.0
    max_delay_seconds: float = 5.0


@final
@dataclass(slots=True)
class Attempts:
    """The attempts of one call.

    Tried again is what is UNAVAILABLE, and what is RESOURCE_EXHAUSTED with a RetryInfo (of a quota: one
    that is not longer than the policy's longest delay). A refusal by
    the service itself changed nothing, so any call may follow it; after a broken connection it is
    open whether the call was carried out, so only a repeatable one may.
    """

    policy: RetryPolicy
    timeout_seconds: float
    repeatable: bool = True
    patient: bool = False
    """Goes on until the deadline instead of counting."""
    _failures: int = 0
    _reason: FinetunedError | None = None
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def of_call(cls, call: Call[Any], policy: RetryPolicy, deadlines: Deadlines) -> Attempts:
        timeout_seconds = call.timeout_seconds or deadlines.seconds(call.kind)
        return cls(policy, timeout_seconds, repeatable=call.repeatable, patient=call.patient)

    def offset_after(self, previous: int, committed: int) -> int:
        """Where an upload goes on; one that came further may fail as often again."""
        if committed > previous:
            self._failures = 0
        return committed

    def remaining_seconds(self) -> float:
        """What is left for the next attempt; a little even when time is over, so that gRPC says so."""
        return max(self.timeout_seconds - (time.monotonic() - self._started), 0.001)

    def delay_seconds(self, error: FinetunedError) -> float:
        """How long to wait before the next attempt.

        Raises:
            FinetunedError: `error` itself, if there is to be no further attempt.
        """
        if isinstance(error, DeadlineExceeded) and self.patient and self._reason is not None:
            raise self._reason  # why it took so long says more than that it did
        self._failures += 1
        self._reason = error
        delay = max(self._backoff_seconds(), error.retry_after_seconds or 0.0)
        counted_out = not self.patient and self._failures >= self.policy.attempts
        if counted_out or delay >= self.remaining_seconds() or not self._worth_repeating(error):
            raise error
        return delay

    def _worth_repeating(self, error: FinetunedError) -> bool:
        if isinstance(error, ResourceExhausted):
            # A quota with a long wait needs a deletion or the end of a job: the caller has to see it.
            longest = self.policy.max_delay_seconds if isinstance(error, QuotaExceeded) else float("inf")
            return error.retry_after_seconds is not None and error.retry_after_seconds <= longest
        return isinstance(error, Unavailable) and (self.repeatable or error.from_service)

    def _backoff_seconds(self) -> float:
        ceiling = self.policy.first_delay_seconds * self.policy.factor ** (self._failures - 1)
        # Jitter keeps clients that failed together from coming back together; no secrecy is needed.
        return min(ceiling, self.policy.max_delay_seconds) * random.uniform(0.5, 1.0)  # noqa: S311 - see above
