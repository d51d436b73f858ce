"""Lines of a text file, each with its number, never more of one in memory than is allowed."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from finetuned_service.errors import InvalidData

_SKIP_BYTES = 64 * 1024


def numbered_lines(lines: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
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


def text_of(line: bytes | None, max_line_bytes: int) -> str:
    """A line as text.

    Raises:
        InvalidData: it is too long, or not UTF-8.
    """
    if line is None:
        raise InvalidData(
            f"is longer than {max_line_bytes} bytes, which is the limit; shorten or split the row"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        hint = (
            "the file looks like UTF-16"
            if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            else f"byte {error.start + 1} is 0x{line[error.start]:02X}"
        )
        raise InvalidData(f"is not UTF-8: {hint}; save the file as UTF-8") from None
