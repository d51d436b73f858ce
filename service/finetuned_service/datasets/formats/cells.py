"""Cells of a table that has only text, as the values that JSON would have there."""

from __future__ import annotations

import json

from finetuned_service.errors import InvalidData

LISTS = frozenset({"labels", "tokens", "tags", "negatives", "messages"})
"""Fields whose cells hold JSON: a list."""


def value_of(name: str, cell: str) -> object:
    """What a cell of the field `name` says.

    Raises:
        InvalidData: it is no number, or no list, where one is needed.
    """
    if name == "score":
        try:
            return float(cell)
        except ValueError:
            raise InvalidData(f"score is {cell[:40]!r}; expected a number") from None
    if name not in LISTS:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise InvalidData(f'{name} is {cell[:40]!r}; expected a JSON list, such as ["a", "b"]') from None
