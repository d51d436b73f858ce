"""Which column of a table is which field of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetuned_service.datasets.shapes import SHAPES, shown
from finetuned_service.errors import InvalidData, InvalidField

MAY_LACK = frozenset(name for shape in SHAPES for name in shape.optional)
"""Fields that a row of some kind may have and need not."""
_FIELDS = tuple(dict.fromkeys(name for shape in SHAPES for name in shape.allowed))


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a mapping that no file could follow.

    Raises:
        InvalidField: it names a field that no row has, or one field twice.
    """
    for column, field in columns.items():
        if field not in _FIELDS:
            raise InvalidField.one(
                "columns", f"maps {shown(column)} to {shown(field)}; allowed: {', '.join(_FIELDS)}"
            )
    if len(set(columns.values())) < len(columns):
        raise InvalidField.one("columns", "maps two columns to one field; keep one")


def check_header(header: Sequence[str], columns: Mapping[str, str]) -> None:
    """Refuse a table that lacks a column that is asked for, or has one twice.

    Raises:
        InvalidData: naming it.
    """
    named = ", ".join(shown(name) for name in header[:20])
    for column in columns:
        if column not in header:
            raise InvalidData(f"the file has no column {shown(column)}, which columns names; it has {named}")
    if len(set(header)) < len(header):
        raise InvalidData(f"the file has a column twice; it has {named}")
    if len(header) == 1 and not columns and any(mark in header[0] for mark in ";\t|"):
        raise InvalidData(f"the file has the one column {named}; expected commas between columns")


def field_of(column: str, columns: Mapping[str, str]) -> str:
    """The field that a column is; "" where it is to be left out. Without a mapping, names are fields."""
    return columns.get(column, "") if columns else column


def renamed(content: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """An object with the fields that its names stand for.

    Raises:
        InvalidData: it lacks one, and rows may not lack that field.
    """
    for name, field in columns.items():
        if name not in content and field not in MAY_LACK:
            raise InvalidData(f"lacks {shown(name)}, which columns names for {field}")
    return {field: value for name, value in content.items() if (field := field_of(name, columns))}
