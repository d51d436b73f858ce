"""Which reader a file gets: by the format that the caller named, or by the name of the file."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath

from finetuned_service.datasets.formats.columns import check_columns, renamed
from finetuned_service.datasets.formats.conll import read_conll
from finetuned_service.datasets.formats.csv import read_csv
from finetuned_service.datasets.formats.image_folder import read_image_folder
from finetuned_service.datasets.formats.jsonl import read_jsonl
from finetuned_service.datasets.formats.parquet_process import read_parquet_apart
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData, InvalidField


class DataFormat(StrEnum):
    """The format of a file; the contract's names."""

    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "PARQUET"
    CONLL = "CONLL"
    IMAGE_FOLDER = "IMAGE_FOLDER"


_ENDINGS = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".json": DataFormat.JSONL,
    ".csv": DataFormat.CSV,
    ".parquet": DataFormat.PARQUET,
    ".conll": DataFormat.CONLL,
    ".conllu": DataFormat.CONLL,
    ".zip": DataFormat.IMAGE_FOLDER,
}
_MAGIC = {b"PAR1": DataFormat.PARQUET, b"PK\x03\x04": DataFormat.IMAGE_FOLDER}
_TABLES = {DataFormat.JSONL, DataFormat.CSV, DataFormat.PARQUET}


def format_of_name(name: str) -> DataFormat | None:
    """The format that a file's name tells, `.gz` left aside; None where it tells none."""
    return _ENDINGS.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)


def check_mapping(file_format: DataFormat, columns: Mapping[str, str]) -> None:
    """Refuse a mapping of columns that no file of this format could follow.

    Raises:
        InvalidField: the format has no names of columns, or the mapping names fields that no row has.
    """
    check_columns(columns)
    if columns and file_format not in _TABLES:
        raise InvalidField.one(
            "columns", f"is for JSONL, CSV and PARQUET; {file_format} has no names of columns"
        )


def read_records(
    source: Path, file_format: DataFormat, limits: DataLimits, columns: Mapping[str, str]
) -> Records:
    """The records of a file that is not compressed.

    Raises:
        InvalidData: it cannot be read as this format, or looks like another one.
    """
    with source.open("rb") as file:
        found = _MAGIC.get(file.read(4))
    if found is not None and found is not file_format:
        raise InvalidData(f"the file looks like {found} and the format is {file_format}; name its format")
    match file_format:
        case DataFormat.JSONL:
            return _renamed(read_jsonl(source, limits), columns) if columns else read_jsonl(source, limits)
        case DataFormat.CSV:
            return read_csv(source, limits, columns)
        case DataFormat.PARQUET:
            return read_parquet_apart(source, limits, columns)
        case DataFormat.CONLL:
            return read_conll(source, limits)
        case DataFormat.IMAGE_FOLDER:
            return read_image_folder(source, limits)


def _renamed(records: Records, columns: Mapping[str, str]) -> Records:
    for record in records:
        try:
            content = renamed(record.content, columns) if isinstance(record.content, dict) else record.content
        except InvalidData as error:
            content = error
        yield Record(record.place, content)


UNITS: Mapping[DataFormat, tuple[str, str]] = {
    DataFormat.PARQUET: ("row", "rows"),
    DataFormat.IMAGE_FOLDER: ("entry", "entries"),
}
"""What the records of a format are called; "line" where nothing is said."""
