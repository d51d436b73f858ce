"""Which token answers for each word of a text: one place for what trains, what evaluates and what serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.text.tokenizer import EncodedText


@dataclass(frozen=True, slots=True)
class AnsweredWord:
    """A word as the tokenizer cuts it; at white space it ends in any case."""

    place: int
    """Of its first token, which answers for it; a space before the word may be a token of its own."""
    start: int
    """Of all its tokens the first character."""
    end: int
    """After the last."""


def answered_words(encoded: EncodedText, text: str) -> list[AnsweredWord]:
    """The words of an encoded text, in order; what was put around it belongs to none."""
    found: list[AnsweredWord] = []
    before: int | None = None
    for place, (span, word) in enumerate(zip(encoded.spans, encoded.words, strict=True)):
        if span is None:
            continue
        start, end = span
        if (
            found
            and word is not None
            and word == before
            and not text[found[-1].end : found[-1].end + 1].isspace()
        ):
            found[-1] = AnsweredWord(found[-1].place, found[-1].start, end)
        else:
            found.append(AnsweredWord(place, start, end))
        before = word
    return found


def places_of(spans: Sequence[tuple[int, int]], encoded: EncodedText, text: str) -> list[int | None]:
    """For each of somebody's own words, given in order by first character and end, the token that answers for it: that of
    the first word of the tokenizer that overlaps it and answers for none before; None where there is none.
    """
    answered = answered_words(encoded, text)
    found: list[int | None] = []
    next_word = 0
    for start, end in spans:
        while next_word < len(answered) and answered[next_word].end <= start:
            next_word += 1
        if next_word < len(answered) and answered[next_word].start < end:
            found.append(answered[next_word].place)
            next_word += 1
        else:
            found.append(None)
    return found
