"""From a file of any format to canonical rows: one pass, one row in memory at a time.

What is not a row to learn from is refused by its place in the file, and then nothing is left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from finetuned_service.datasets.dataset_report import ReportBuilder
from finetuned_service.datasets.formats.choose import UNITS, DataFormat, read_records
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.formats.unpack import unpacked
from finetuned_service.datasets.images import check_image
from finetuned_service.datasets.kinds import DatasetRow, LabelledImage, RowKind, kind_of
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.datasets.rows import parse_row, to_json
from finetuned_service.errors import FinetunedError, InvalidData, Violation
from finetuned_service.storage.files import sync_directory, sync_file
from finetuned_service.vocabulary import DatasetReport

__all__ = ["DataFormat", "DataLimits", "DatasetFacts", "validate", "validate_jsonl"]

MAX_COUNTED_FAULTS = 10_000
"""After so many bad rows the rest of the file is not read."""


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a valid file holds."""

    row_kind: RowKind
    rows: int
    size_bytes: int
    """Size of the canonical rows."""
    digest: str
    """`sha256:` over the canonical rows, each with its newline."""
    report: DatasetReport


def validate_jsonl(source: Path, target: Path, limits: DataLimits) -> DatasetFacts:
    """`validate` for JSON lines."""
    return validate(source, target, limits, DataFormat.JSONL, {})


def validate(
    source: Path, target: Path, limits: DataLimits, file_format: DataFormat, columns: Mapping[str, str]
) -> DatasetFacts:
    """Check `source` and write its rows to `target` in canonical spelling.

    The same rows give the same digest, however and in whatever format the file spelled them; order counts.

    Args:
        source: a file as somebody wrote it, or that file through gzip.
        target: where the canonical rows go; appears whole, by rename, or not at all.
        limits: what is allowed.
        file_format: the format of `source`.
        columns: which column of the file is which field; columns that it does not name are left out. Empty
            takes all, under their own names.

    Raises:
        InvalidData: with a violation for each of the first 20 bad rows, and the number of all bad rows in the
            metadata `invalid_rows`. `target` is as it was before.
    """
    size_bytes = source.stat().st_size
    if size_bytes > limits.max_bytes:
        raise InvalidData(
            f"the file has {size_bytes} bytes; allowed: {limits.max_bytes}. Split it",
            metadata={"max_bytes": str(limits.max_bytes)},
        )
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with (
            TemporaryDirectory(dir=target.parent, prefix=".unpacked-") as temporary,
            unfinished.open("wb") as canonical,
        ):
            plain = unpacked(source, Path(temporary) / "file", limits.max_unpacked_bytes)
            records = read_records(plain, file_format, limits, columns)
            facts = _copy_rows(records, canonical, limits, file_format)
        sync_file(unfinished)
        unfinished.replace(target)
        sync_directory(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return facts


@dataclass(slots=True)
class _Findings:
    """The bad rows so far; the first are kept, all are counted."""

    units: tuple[str, str]
    violations: list[Violation] = field(default_factory=list[Violation])
    count: int = 0

    def add(self, place: str, description: str) -> None:
        """Note a bad row.

        Raises:
            InvalidData: there are so many that reading on is a waste.
        """
        self.count += 1
        if len(self.violations) < FinetunedError.MAX_VIOLATIONS:
            self.violations.append(Violation(place, description))
        if self.count == MAX_COUNTED_FAULTS:
            raise self.refusal()

    def refusal(self) -> InvalidData:
        shown = len(self.violations)
        first = self.violations[0]
        more = f"; the first {shown} are listed" if self.count > shown else ""
        one, many = self.units
        rows = f"{one} is" if self.count == 1 else f"{many} are"
        at_least = "at least " if self.count == MAX_COUNTED_FAULTS else ""
        return InvalidData(
            f"{at_least}{self.count} {rows} not usable{more}; nothing was stored. {first.field}: {first.description}",
            metadata={"invalid_rows": str(self.count)},
            violations=self.violations,
        )


def _copy_rows(
    records: Records, canonical: BinaryIO, limits: DataLimits, file_format: DataFormat
) -> DatasetFacts:
    findings = _Findings(UNITS.get(file_format, ("line", "lines")))
    report = ReportBuilder(limits)
    digest = hashlib.sha256()
    rows = size_bytes = 0
    first_place = ""
    row_kind: RowKind | None = None
    for record in records:
        try:
            row = _row(record, limits)
        except InvalidData as error:
            findings.add(record.place, error.message)
            continue
        if row_kind is None:
            row_kind, first_place = kind_of(row), record.place
        elif kind_of(row) is not row_kind:
            findings.add(
                record.place,
                f"is a {kind_of(row)} row; {first_place} is a {row_kind} row and a dataset "
                "holds one kind. Split the file",
            )
            continue
        rows += 1
        if rows > limits.max_rows:
            raise InvalidData(
                f"the file has more than {limits.max_rows} rows, which is the limit. Split it",
                metadata={"max_rows": str(limits.max_rows)},
            )
        report.add(row)
        spelled = to_json(row).encode() + b"\n"
        digest.update(spelled)
        size_bytes += canonical.write(spelled)
        if size_bytes > limits.max_unpacked_bytes:
            raise InvalidData(
                f"the rows up to {record.place} take {size_bytes} bytes as they are stored; allowed: "
                f"{limits.max_unpacked_bytes}. Split the file",
                metadata={"max_unpacked_bytes": str(limits.max_unpacked_bytes)},
            )
    if findings.count:
        raise findings.refusal()
    if row_kind is None:
        raise InvalidData(f"the file holds no rows; {_EXPECTED[file_format]}", metadata={"invalid_rows": "0"})
    return DatasetFacts(row_kind, rows, size_bytes, f"sha256:{digest.hexdigest()}", report.report())


_EXPECTED = {
    DataFormat.JSONL: "expected one JSON object a line",
    DataFormat.CSV: "expected a header line and a line for each row",
    DataFormat.PARQUET: "expected at least one",
    DataFormat.CONLL: "expected a token and its tag on each line",
    DataFormat.IMAGE_FOLDER: "expected images in folders",
}


def _row(record: Record, limits: DataLimits) -> DatasetRow:
    if isinstance(record.content, InvalidData):
        raise record.content
    row = parse_row(record.content)
    if isinstance(row, LabelledImage):
        check_image(row.image, limits)
    return row
