"""What a stream of answers does next: go on, connect again, wait, or give up. Pure; no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

from google.protobuf.message import Message

from finetuned._calls.call import StreamCall
from finetuned._retry import Attempts, Deadlines, RetryPolicy
from finetuned.errors import DeadlineExceeded, FinetunedError

T = TypeVar("T")


@final
@dataclass(slots=True)
class StreamProgress(Generic[T]):
    """One stream over as many connections as it takes.

    Loop: while `request` is not None, send it with `timeout_seconds()`; tell every answer to
    `received`, a clean end to `ended`, and a failure to `failed`, which says how long to wait.
    """

    call: StreamCall[T]
    policy: RetryPolicy
    deadlines: Deadlines
    request: Message | None = field(init=False)
    _attempts: Attempts = field(init=False)
    _last: T | None = None
    _answers: int = 0
    """Answers over the present connection."""
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.request = self.call.request
        self._attempts = self._new_attempts()

    @property
    def _resumable(self) -> bool:
        return self.call.resume is not None

    def _new_attempts(self) -> Attempts:
        bound_seconds = self.deadlines.seconds(self.call.kind)
        return Attempts(self.policy, bound_seconds, patient=self._resumable)

    def timeout_seconds(self) -> float:
        """The deadline of the next connection, which starts now."""
        self._answers = 0
        if not self._resumable:
            return self._attempts.remaining_seconds()
        return min(self.deadlines.seconds(self.call.kind), self._left_seconds())

    def _left_seconds(self) -> float:
        if self.call.timeout_seconds is None:
            return float("inf")
        return max(self.call.timeout_seconds - (time.monotonic() - self._started), 0.001)

    def received(self, answer: T) -> T:
        self._answers += 1
        self._last = answer
        self._attempts = self._new_attempts() if self._resumable else self._attempts
        if self.call.resume is not None:
            self.request = self.call.resume(answer)
        return answer

    def ended(self) -> None:
        """A clean end is the end, unless a resumable stream stopped before its last answer."""
        if not self._resumable or self._answers == 0:
            self.request = None

    def failed(self, error: FinetunedError) -> float:
        """Seconds to wait before `request` is sent.

        Raises:
            FinetunedError: `error` itself, if the stream cannot go on.
        """
        if self.request is None:
            return 0.0  # the last answer is here; how the connection ended matters no more
        onward = self.call.recover(error) if self.call.recover is not None else None
        if onward is not None and onward != self.request:
            self.request = onward
            return 0.0
        if not self._resumable and self._answers:
            raise error
        if self._resumable and isinstance(error, DeadlineExceeded) and self._left_seconds() > 0.001:
            # The connection was quiet for its whole deadline, as that of a waiting job may be.
            self._attempts = self._new_attempts()
            return 0.0
        delay = self._attempts.delay_seconds(error)
        if delay >= self._left_seconds():
            raise error
        return delay
