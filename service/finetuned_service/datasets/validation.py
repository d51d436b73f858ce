"""From an uploaded file to canonical rows: one pass, one line in memory at a time.

JSON lines in UTF-8. A byte order mark at the start, CRLF and empty lines are let through, because
they change no row; everything else that is not a row to learn from is refused by line, and then
nothing is left behind. JSON's own gaps are closed: a name twice in one object, NaN and Infinity
are errors.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from finetuned_service.datasets.kinds import DatasetRow, RowKind, kind_of
from finetuned_service.datasets.rows import parse_row, to_json
from finetuned_service.errors import FinetunedError, InvalidData, Violation
from finetuned_service.storage.files import sync_directory, sync_file

_SKIP_BYTES = 64 * 1024

MAX_COUNTED_FAULTS = 10_000
"""After so many bad lines the rest of the file is not read."""


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What one dataset may hold."""

    max_line_bytes: int = 1024 * 1024
    """The longest line, without its line end."""
    max_rows: int = 1_000_000
    max_bytes: int = 1024 * 1024 * 1024
    """The largest file, as uploaded."""


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a valid file holds."""

    row_kind: RowKind
    rows: int
    size_bytes: int
    """Size of the canonical rows."""
    digest: str
    """`sha256:` over the canonical rows, each with its newline."""


def validate_jsonl(source: Path, target: Path, limits: DataLimits) -> DatasetFacts:
    """Check `source` and write its rows to `target` in canonical spelling.

    The same rows give the same digest, however the file spelled them; order counts.

    Args:
        source: JSON lines as somebody wrote them.
        target: where the canonical rows go; appears whole, by rename, or not at all.
        limits: what is allowed.

    Raises:
        InvalidData: with a violation for each of the first 20 bad lines, and the number of all bad
            lines in the metadata `invalid_rows`. `target` is as it was before.
    """
    size_bytes = source.stat().st_size
    if size_bytes > limits.max_bytes:
        raise InvalidData(
            f"the file has {size_bytes} bytes; allowed: {limits.max_bytes}. Split it",
            metadata={"max_bytes": str(limits.max_bytes)},
        )
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with source.open("rb") as lines, unfinished.open("wb") as canonical:
            facts = _copy_rows(lines, canonical, limits)
        sync_file(unfinished)
        unfinished.replace(target)
        sync_directory(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return facts


@dataclass(slots=True)
class _Findings:
    """The bad lines so far; the first are kept, all are counted."""

    violations: list[Violation] = field(default_factory=list[Violation])
    count: int = 0

    def add(self, number: int, description: str) -> None:
        """Note a bad line.

        Raises:
            InvalidData: there are so many that reading on is a waste.
        """
        self.count += 1
        if len(self.violations) < FinetunedError.MAX_VIOLATIONS:
            self.violations.append(Violation(f"line {number}", description))
        if self.count == MAX_COUNTED_FAULTS:
            raise self.refusal()

    def refusal(self) -> InvalidData:
        shown = len(self.violations)
        first = self.violations[0]
        more = f"; the first {shown} are listed" if self.count > shown else ""
        lines = "line is" if self.count == 1 else "lines are"
        at_least = "at least " if self.count == MAX_COUNTED_FAULTS else ""
        return InvalidData(
            f"{at_least}{self.count} {lines} not usable{more}; nothing was stored. {first.field}: {first.description}",
            metadata={"invalid_rows": str(self.count)},
            violations=self.violations,
        )


def _copy_rows(lines: BinaryIO, canonical: BinaryIO, limits: DataLimits) -> DatasetFacts:
    findings = _Findings()
    digest = hashlib.sha256()
    rows = size_bytes = first_number = 0
    row_kind: RowKind | None = None
    for number, line in _lines(lines, limits.max_line_bytes):
        if number > 2 * limits.max_rows:
            raise _too_many("lines", 2 * limits.max_rows)
        try:
            row = _row(line, limits.max_line_bytes)
        except InvalidData as error:
            findings.add(number, error.message)
            continue
        if row is None:
            continue
        if row_kind is None:
            row_kind, first_number = kind_of(row), number
        elif kind_of(row) is not row_kind:
            findings.add(
                number,
                f"is a {kind_of(row)} row; line {first_number} is a {row_kind} row and a dataset "
                "holds one kind. Split the file",
            )
            continue
        rows += 1
        if rows > limits.max_rows:
            raise _too_many("rows", limits.max_rows)
        spelled = to_json(row).encode() + b"\n"
        digest.update(spelled)
        size_bytes += canonical.write(spelled)
    if findings.count:
        raise findings.refusal()
    if row_kind is None:
        raise InvalidData(
            "the file holds no rows; expected one JSON object a line", metadata={"invalid_rows": "0"}
        )
    return DatasetFacts(row_kind, rows, size_bytes, f"sha256:{digest.hexdigest()}")


def _too_many(what: str, limit: int) -> InvalidData:
    return InvalidData(
        f"the file has more than {limit} {what}, which is the limit. Split it",
        metadata={f"max_{what}": str(limit)},
    )


def _lines(lines: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines without their ends; None for a line over the limit, never held whole."""
    if lines.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        lines.seek(0)
    number = 0
    # Two bytes more than allowed, for CRLF: a line that has not ended then is too long.
    while line := lines.readline(max_line_bytes + 2):
        number += 1
        ended = line.endswith(b"\n")
        while not ended and (rest := lines.readline(_SKIP_BYTES)):
            ended = rest.endswith(b"\n")
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        yield number, content if len(content) <= max_line_bytes else None


def _row(line: bytes | None, max_line_bytes: int) -> DatasetRow | None:
    """The row of a line, or None if the line is empty.

    Raises:
        InvalidData: says what is wrong with the line.
    """
    if line is None:
        raise InvalidData(
            f"is longer than {max_line_bytes} bytes, which is the limit; shorten or split the row"
        )
    if not line.strip():
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        hint = (
            "the file looks like UTF-16"
            if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            else (f"byte {error.start + 1} is 0x{line[error.start]:02X}")
        )
        raise InvalidData(f"is not UTF-8: {hint}; save the file as UTF-8") from None
    return parse_row(_decode(text))


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
