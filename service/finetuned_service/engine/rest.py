"""Pauses between steps, in which jobs of this machine compute: all cores at once, and none while a step runs.

A job under SCHED_IDLE has what serving leaves idle, and busy serving leaves nothing. Time slices would give a job its
share in the middle of a step, where each of the engine's threads waits for all others; a pause costs the streams
its length and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_SECONDS = 0.03
"""Of one pause; a step that computes long prompts is not paid for in full."""


class Rest:
    """How long the engine's thread is to pause after a step.

    Args:
        sleep: takes seconds.
        clock: in seconds, never backwards.
    """

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.share = 0.0
        """Of the time in which there is something to compute; 0 where no job runs."""
        self._sleep = sleep
        self._clock = clock
        self._since_seconds = clock()
        self._computed = False

    def computed(self) -> None:
        """A step had something to compute: the time since the last `take` was busy, and not spent waiting for requests."""
        self._computed = True

    def take(self) -> None:
        """Pause for what was busy since the last time; call it when the step's events are on their way."""
        computed, self._computed = self._computed, False
        if self.share and computed:
            busy_seconds = self._clock() - self._since_seconds
            self._sleep(min(MOST_SECONDS, busy_seconds * self.share / (1.0 - self.share)))
        self._since_seconds = self._clock()
