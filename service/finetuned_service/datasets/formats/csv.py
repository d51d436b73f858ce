"""Comma-separated values in UTF-8 with a header line (RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetuned_service.datasets.formats.cells import value_of
from finetuned_service.datasets.formats.columns import MAY_LACK, check_header, field_of
from finetuned_service.datasets.formats.lines import numbered_lines, text_of
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData


def read_csv(source: Path, limits: DataLimits, columns: Mapping[str, str]) -> Records:
    """One record for each row after the header, with the fields of the row as names.

    A row is named by the line on which it ends. An empty cell of a field that a row may lack is the lack of it.

    Raises:
        InvalidData: no header, columns that the file does not have, or text that cannot be cut into cells; the
            rest of the file is not read then.
    """
    # The library's limit is for the whole process; every server has one.
    csv.field_size_limit(limits.max_line_bytes)
    with source.open("rb") as file:
        lines = _Lines(numbered_lines(file, limits.max_line_bytes), limits.max_line_bytes)
        rows = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise InvalidData(
                    f"line {lines.number} is not CSV: {error}; expected commas between cells, and quotes around a "
                    "cell that holds a comma, a quote (doubled) or a line end"
                ) from error
            if cells is None:
                break
            if not cells:
                continue
            if header is None:
                header = cells
                check_header(header, columns)
                continue
            yield Record(f"line {lines.number}", _content(header, cells, columns))


class _Lines:
    """Lines as the library wants them, and the number of the last one that it took."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]], max_line_bytes: int) -> None:
        self._lines = lines
        self._max_line_bytes = max_line_bytes
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            self.number = number
            try:
                yield text_of(line, self._max_line_bytes) + "\n"
            except InvalidData as error:
                # What follows cannot be cut: a quote in the line may be open.
                raise InvalidData(f"line {number} {error.message}") from None


def _content(header: list[str], cells: list[str], columns: Mapping[str, str]) -> object:
    if len(cells) != len(header):
        return InvalidData(f"has {len(cells)} cells; the header names {len(header)} columns")
    try:
        named = ((field_of(column, columns), cell) for column, cell in zip(header, cells, strict=True))
        return {name: value_of(name, cell) for name, cell in named if name and not _lacking(name, cell)}
    except InvalidData as error:
        return error


def _lacking(name: str, cell: str) -> bool:
    return not cell and name in MAY_LACK
