"""How long a regular expression gets when its counted repetitions are written out."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPE = re.compile(r"\\(?:[pPxuU]\{[^}]*\}|.)", re.DOTALL)
_COUNT = re.compile(r"\{ *(\d*) *(,?) *(\d*) *\}")
_UNBOUNDED = 10
"""What "at least n times" counts as, in multiples of n."""


@dataclass(slots=True)
class _Size:
    written_out: int = 0
    """Characters and classes, repetitions written out."""
    repeated: int = 0
    """Those of them that some counted repetition made."""

    def add(self, other: _Size) -> None:
        self.written_out += other.written_out
        self.repeated += other.repeated


def repeated_characters(pattern: str) -> int:
    r"""Characters and classes that counted repetitions make of a pattern; those outside of any do not count.

    `\d{4}-\d{2}` has 6, `(ab{3}){10}` has 40. Reads a pattern in the syntax of Rust's regex crate as it is
    written, valid or not.
    """
    outer: list[_Size] = []
    here, last = _Size(), _Size()
    place = 0
    while place < len(pattern):
        character = pattern[place]
        end = place + 1
        if character == "\\" and (escape := _ESCAPE.match(pattern, place)):
            end = escape.end()
            last = _Size(1)
            here.add(last)
        elif character == "[":
            end = _class_end(pattern, place)
            last = _Size(1)
            here.add(last)
        elif character == "(":
            outer.append(here)
            here = last = _Size()
        elif character == ")" and outer:
            last, here = here, outer.pop()
            here.add(last)
        elif character == "{" and (count := _COUNT.match(pattern, place)):
            end = count.end()
            repeated = _times(*count.groups()) * max(last.written_out, 1)
            here.add(_Size(repeated - last.written_out, repeated - last.repeated))
            last = _Size(repeated, repeated)
        elif character not in "*+?":  # these repeat what stands before, in one state each
            last = _Size(1)
            here.add(last)
        place = end
    while outer:
        here.add(outer.pop())
    return here.repeated


def _times(least: str, comma: str, most: str) -> int:
    """Of `{least,most}`, at least 1."""
    if most:
        return max(1, int(most))
    return max(1, int(least or 1) * (_UNBOUNDED if comma else 1))


def _class_end(pattern: str, place: int) -> int:
    """Where the class that begins at `place` is over; classes may hold classes."""
    depth = 0
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1
        elif character == "[":
            depth += 1
            if pattern.startswith("^", place + 1):
                place += 1
            if pattern.startswith("]", place + 1):  # first in a class it is a character
                place += 1
        elif character == "]":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return place
