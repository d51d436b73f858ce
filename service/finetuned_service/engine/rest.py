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
    """How long the engine's thread is to pause after what it has computed."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self.share = 0.0
        """Of the time in which there is something to compute; 0 where no job runs."""
        self._sleep = sleep
        self._worked_seconds = 0.0

    def worked(self, seconds: float) -> None:
        """So long did a step compute."""
        self._worked_seconds += seconds

    def take(self) -> None:
        """Pause for what was worked since the last time; call it when the step's events are on their way."""
        worked, self._worked_seconds = self._worked_seconds, 0.0
        if self.share and worked:
            self._sleep(min(MOST_SECONDS, worked * self.share / (1.0 - self.share)))
