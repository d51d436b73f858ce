"""The long phases of a job process: they tell how far they are, at a pace that people can follow and the store can
keep, and end when the process is asked to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.process import ReportFunction, StopFlag

REPORT_INTERVAL_SECONDS = 0.5

T = TypeVar("T")


class Stopped(Exception):
    """The process was asked to stop; what the phase has not kept is done again by the next attempt."""


def go_on(stop: StopFlag | None) -> None:
    """For work on one item after another; None never stops.

    Raises:
        Stopped: if the process was asked to end.
    """
    if stop is not None and stop.is_set():
        raise Stopped


def until_stopped(items: Iterable[T], stop: StopFlag | None) -> Iterator[T]:
    """The items, `go_on` before each."""
    for item in items:
        go_on(stop)
        yield item


class Phase:
    """One phase of the run: reports its steps, and ends it between two of them when asked to stop."""

    def __init__(
        self,
        name: str,
        total_steps: int,
        report: ReportFunction,
        stop: StopFlag,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._total_steps = total_steps
        self._report = report
        self._stop = stop
        self._clock = clock
        self._begin = self._reported = clock()
        self._step = 0
        report(Progress(phase=name, total_steps=total_steps))

    def advance(self, tokens: int = 0, *, steps: int = 1) -> None:
        """So many more steps are done; `tokens` is how many were measured in the phase so far.

        Raises:
            Stopped: if the process was asked to end.
        """
        if self._stop.is_set():
            raise Stopped
        self._step += steps
        now = self._clock()
        if self._step < self._total_steps and now - self._reported < REPORT_INTERVAL_SECONDS:
            return
        self._reported = now
        elapsed_seconds = max(now - self._begin, 1e-9)
        self._report(
            Progress(
                phase=self._name,
                step=self._step,
                total_steps=self._total_steps,
                tokens=tokens,
                tokens_per_second=tokens / elapsed_seconds,
                eta_seconds=elapsed_seconds / self._step * (self._total_steps - self._step)
                if self._step
                else None,
            )
        )
