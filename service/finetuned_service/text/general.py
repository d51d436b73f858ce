"""A general English text of our own, for measuring models on what is in nobody's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files


def general_text() -> str:
    """About 4,000 tokens of prose on many subjects, written for this project."""
    return (files("finetuned_service.text") / "general.txt").read_text(encoding="utf-8")


def cut(token_ids: Sequence[int], start: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Windows of at most `longest` ids, each with `start` before it; one of fewer than two ids is left out."""
    step = longest - len(start)
    for begin in range(0, len(token_ids), step):
        window = [*start, *token_ids[begin : begin + step]]
        if len(window) >= 2:
            yield window
