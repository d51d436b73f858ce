"""JSON lines in UTF-8.

A byte order mark at the start, CRLF and empty lines are let through, because they change no row.
JSON's own gaps are closed: a name twice in one object, NaN and Infinity are errors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from finetuned_service.datasets.formats.lines import numbered_lines, text_of
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData


def read_jsonl(source: Path, limits: DataLimits) -> Records:
    """One record for each line that is not empty.

    Raises:
        InvalidData: there are too many lines.
    """
    with source.open("rb") as file:
        for number, line in numbered_lines(file, limits.max_line_bytes):
            if number > 2 * limits.max_rows:
                raise InvalidData(
                    f"the file has more than {2 * limits.max_rows} lines, which is the limit. Split it",
                    metadata={"max_lines": str(2 * limits.max_rows)},
                )
            if line is None or line.strip():
                yield Record(f"line {number}", _content(line, limits.max_line_bytes))


def _content(line: bytes | None, max_line_bytes: int) -> object:
    try:
        return _decode(text_of(line, max_line_bytes))
    except InvalidData as error:
        return error


def _decode(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidData(f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise InvalidData("is nested too deeply; rows are flat objects") from None
    except ValueError:  # the integer parser's limit of digits
        raise InvalidData(
            "holds a number with too many digits; rows hold finite numbers and strings"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidData(f"has the field {name[:40]!r} twice in one object; keep one")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidData(f"holds {name}, which is not JSON; rows hold finite numbers and strings")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
