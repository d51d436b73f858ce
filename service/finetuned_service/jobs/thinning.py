"""Which events of a job go when it has more than are kept: the finest of what is told again and again, so that curves
keep their whole range. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PROGRESS = frozenset({"progress"})
_CURVES = frozenset({"progress", "checkpoint", "evaluation"})


@dataclass(frozen=True, slots=True)
class Told:
    """One event, as far as thinning looks at it."""

    number: int
    kind: str
    of: str = ""
    """The phase of progress, the subject of an evaluation."""

    @classmethod
    def parse(cls, number: int, body: str) -> Told:
        """From its row."""
        found = json.loads(body)
        return cls(number, found["kind"], found.get("phase") or found.get("subject") or "")


def thinned(events: Sequence[Told], least: int) -> list[int]:
    """Numbers of events to drop, at least so many; empty if these have not so many to spare.

    Of progress in one span of numbers the first stays, and the first of each phase as well: who reads a curve knows by it
    what follows. Spans are the shortest power of two that suffices, so that those of earlier calls lie within them and the
    curve is equally fine all along. Checkpoints and evaluations are thinned likewise where progress alone is not enough.

    Args:
        events: the older ones of a job, in order.
        least: how many are too many; at least 1.
    """
    if not events:
        return []
    longest = max(1, events[-1].number).bit_length()
    for kinds in (_PROGRESS, _CURVES):
        for bits in range(1, longest + 1):
            dropped = list(_repeated(events, kinds, bits))
            if len(dropped) >= least:
                return dropped
    return []


def _repeated(events: Iterable[Told], kinds: frozenset[str], bits: int) -> Iterable[int]:
    """Of those kinds what comes after one like it in the same span of 2^bits numbers."""
    last: dict[str, tuple[str, int]] = {}
    for event in events:
        if event.kind in kinds:
            found = (event.of, event.number >> bits)
            if last.get(event.kind) == found:
                yield event.number
            last[event.kind] = found
