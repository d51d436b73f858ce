"""Deadlines of sequences: who is too late, and who would be. Pure logic, no torch.

Times are `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import heapq
from collections import deque

from finetuned_service.engine.sequence import Phase, Sequence
from finetuned_service.errors import DeadlineExceeded

_MEASURED_STARTS = 64
_FEWEST_STARTS = 8
"""With fewer the pace of the queue is not known, and nobody is refused for it."""
_FEWEST_SWEPT = 64
_SAFETY = 0.5
"""Who would be in time if the queue moved twice as fast as it does is let in."""


class Deadlines:
    """The sequences that have one; tells those whose time is over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        """Deadline and request id, also of some that have ended."""
        self._live: dict[int, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        if (deadline_seconds := sequence.request.deadline_seconds) is not None:
            self._live[sequence.request_id] = sequence
            heapq.heappush(self._heap, (deadline_seconds, sequence.request_id))

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended: nothing of it is kept until its deadline, which may be hours away."""
        self._live.pop(sequence.request_id, None)
        if len(self._heap) > _FEWEST_SWEPT + 2 * len(self._live):
            self._heap = [entry for entry in self._heap if entry[1] in self._live]
            heapq.heapify(self._heap)

    @property
    def next_seconds(self) -> float | None:
        """When the next one is over; None if no sequence that waits or runs has one."""
        while self._heap and self._heap[0][1] not in self._live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now_seconds: float) -> list[Sequence]:
        """Sequences that wait or run and whose time is over; each is told once."""
        found: list[Sequence] = []
        while (next_seconds := self.next_seconds) is not None and next_seconds <= now_seconds:
            found.append(self._live.pop(heapq.heappop(self._heap)[1]))
        return found


class StartPace:
    """How fast the queue moves, from the last sequences that left it for the batch."""

    def __init__(self) -> None:
        self._starts: deque[float] = deque(maxlen=_MEASURED_STARTS)

    def count(self, now_seconds: float) -> None:
        """A sequence got its place."""
        self._starts.append(now_seconds)

    def forget(self) -> None:
        """The queue is empty: what comes next does not wait for what was."""
        self._starts.clear()

    def seconds_until(self, starts: int, now_seconds: float) -> float | None:
        """When so many more will have started; None while the pace is not known."""
        if len(self._starts) < _FEWEST_STARTS:
            return None
        return starts * (now_seconds - self._starts[0]) / len(self._starts)


def refuse_late(sequence: Sequence, wait_seconds: float | None, now_seconds: float) -> None:
    """Refuse a sequence whose deadline is over, or comes long before its turn.

    Args:
        sequence: about to be queued.
        wait_seconds: how long it will wait, by what was measured; None if nobody knows.
        now_seconds: the time.

    Raises:
        DeadlineExceeded: naming the time it would wait and the time it has.
    """
    deadline_seconds = sequence.request.deadline_seconds
    if deadline_seconds is None:
        return
    left_seconds = deadline_seconds - now_seconds
    if left_seconds <= 0:
        raise expiry(sequence)
    if wait_seconds is not None and _SAFETY * wait_seconds > left_seconds:
        raise DeadlineExceeded(
            f"a place in the batch is about {wait_seconds:.1f} s away and the call's deadline {left_seconds:.1f} s; "
            "it was not queued. Give it more time, or try again when less is waiting",
            metadata={
                "stage": "ESTIMATE",
                "estimated_wait_seconds": f"{wait_seconds:.3f}",
                "remaining_seconds": f"{left_seconds:.3f}",
            },
        )


def expiry(sequence: Sequence) -> DeadlineExceeded:
    """What is said of a sequence whose deadline is over."""
    if sequence.phase is Phase.RUNNING:
        return DeadlineExceeded(
            f"the call's deadline came after {sequence.new_tokens} tokens of the reply; its place is free again. "
            "Give it more time or ask for fewer tokens",
            metadata={"stage": "RUNNING", "completion_tokens": str(sequence.new_tokens)},
        )
    return DeadlineExceeded(
        "the call's deadline came before its turn; nothing was computed. Give it more time, or try again when "
        "less is waiting",
        metadata={"stage": "QUEUE"},
    )
