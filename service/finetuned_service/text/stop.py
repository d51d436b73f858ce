"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from finetuned_service.errors import InvalidField


@final
class StopMatcher:
    """Finds the stop string that is complete first, however the text is cut into pieces.

    Of several that end at the same character the longest counts. Holds back exactly the text that
    may be the beginning of a stop string. One automaton per string, one move per character
    (Knuth, Morris and Pratt 1977).

    Raises:
        InvalidField: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InvalidField.one("generate.stop", "holds an empty string; each must have a character")
        self._stops = tuple(dict.fromkeys(stops))
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        """For each stop string, how many of its characters the text ends with."""
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is no part of a stop string, and the stop string if one is complete now."""
        if not self._stops:
            return text, None
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            stop = self._advance(character)
            if stop is not None:
                self._held = ""
                return pending[: position - len(stop)], stop
        released = len(pending) - max(self._matched)
        self._held = pending[released:]
        return pending[:released], None

    def finish(self) -> str:
        """The text held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        complete: str | None = None
        for place, stop in enumerate(self._stops):
            matched = self._matched[place]
            while matched and stop[matched] != character:
                matched = self._borders[place][matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[place] = matched
            if matched == len(stop) and (complete is None or len(stop) > len(complete)):
                complete = stop
        return complete


def _borders(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for place in range(1, len(pattern)):
        while length and pattern[place] != pattern[length]:
            length = borders[length - 1]
        if pattern[place] == pattern[length]:
            length += 1
        borders[place] = length
    return borders
