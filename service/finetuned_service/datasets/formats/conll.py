"""CoNLL columns: one token a line with its tag in the last column, an empty line between sentences.

Columns are separated by tabs where there is one in the line, otherwise by spaces. Lines that begin with -DOCSTART- and comments
(`# name = value`, `# newdoc` before a sentence) hold no token. CoNLL-U itself is refused: its first column counts the tokens, and
several of its others could be the tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from finetuned_service.datasets.formats.lines import numbered_lines, text_of
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData

_COMMENT = re.compile(r"# +\S+ *=|#\S+ +=|#\S+=\S*$|# *(newdoc|newpar)\b")
"""In a line without tabs; `#a=b O` is none, but a token and its tag."""
_NUMBER = re.compile(r"[0-9]+(?:[-.][0-9]+)?")
"""Before a token of CoNLL-U: its own, or the first and the last of those that it is made of."""
_SPACE = " \t\r\f\v"


@dataclass(slots=True)
class _Sentence:
    """The sentence that is being read."""

    first_line: int = 0
    size_bytes: int = 0
    tokens: list[str] = field(default_factory=list[str])
    tags: list[str] = field(default_factory=list[str])
    fault: InvalidData | None = None

    def tells_numbers(self, column_count: int) -> bool:
        """Whether it has enough tokens to tell if they are only their numbers, which is a fault then."""
        if len(self.tokens) < 2 or column_count < 3:
            return False
        numbers = [token for token in self.tokens if token.isdecimal()]
        counted = numbers == [str(place) for place in range(1, len(numbers) + 1)]
        if counted and all(map(_NUMBER.fullmatch, self.tokens)):
            self.fault = InvalidData(
                "the first column counts the tokens, as in CoNLL-U; expected the token first and its tag last: "
                "keep those two columns"
            )
        return True

    def record(self) -> Record:
        content = self.fault or {"tokens": self.tokens, "tags": self.tags}
        return Record(f"line {self.first_line}", content)


def read_conll(source: Path, limits: DataLimits) -> Records:
    """One record for each sentence, named by its first line; a fault inside one names its own line."""
    sentence = _Sentence()
    column_count = 0
    told = False
    with source.open("rb") as file:
        for number, line in numbered_lines(file, limits.max_line_bytes):
            try:
                text = text_of(line, limits.max_line_bytes)
            except InvalidData as error:
                sentence.first_line = sentence.first_line or number
                sentence.fault = sentence.fault or InvalidData(f"line {number} {error.message}")
                continue
            if not text.strip(_SPACE):
                if sentence.first_line:
                    # The first one that can tells for all: others may well be `1 2 3`.
                    told = told or sentence.tells_numbers(column_count)
                    yield sentence.record()
                    sentence = _Sentence()
                continue
            tabs = "\t" in text
            if text.startswith("-DOCSTART-") or (
                not sentence.first_line and not tabs and _COMMENT.match(text)
            ):
                continue
            cells = text.split("\t") if tabs else [cell for cell in text.split(" ") if cell]
            column_count = column_count or len(cells)
            sentence.first_line = sentence.first_line or number
            sentence.size_bytes += len(text)
            sentence.fault = sentence.fault or _fault(number, cells, column_count, sentence, limits)
            if sentence.fault is None:
                sentence.tokens.append(cells[0])
                sentence.tags.append(cells[-1])
    if sentence.first_line:
        if not told:
            sentence.tells_numbers(column_count)
        yield sentence.record()


def _fault(
    number: int, cells: list[str], column_count: int, sentence: _Sentence, limits: DataLimits
) -> InvalidData | None:
    if len(cells) < 2:
        return InvalidData(f"line {number} has one column; expected a token and its tag")
    if len(cells) != column_count:
        return InvalidData(f"line {number} has {len(cells)} columns; the lines before have {column_count}")
    if sentence.size_bytes > limits.max_line_bytes:
        return InvalidData(
            f"the sentence is longer than {limits.max_line_bytes} bytes at line {number}; an empty line ends one"
        )
    return None
