"""Apache Parquet: columns of strings, numbers, lists of them, and images as bytes.

Text is read as dictionaries, so that a value that a small file repeats a million times is in memory once.
pyarrow is imported when it is needed: most uploads are lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetuned_service.datasets.formats.columns import MAY_LACK, check_header, field_of
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.datasets.shapes import shown
from finetuned_service.errors import InvalidData

_BATCH_ROWS = 64


def read_parquet(source: Path, limits: DataLimits, columns: Mapping[str, str]) -> Records:
    """One record for each row, counted from 1.

    An image is a column of bytes, or of structs with `bytes` as the `datasets` library writes them. A null of
    a field that a row may lack is the lack of it.

    Raises:
        InvalidData: the file is damaged, too large when unpacked, or lacks a column that is asked for.
    """
    import pyarrow as pa  # noqa: PLC0415 - see above
    from pyarrow import parquet  # noqa: PLC0415 - see above

    try:
        with parquet.ParquetFile(source) as head:
            _check_size(head.metadata, limits)
            schema = head.schema_arrow
        # First: a column that is there twice has no field of its name.
        check_header(schema.names, columns)
        text = [name for name in schema.names if _is_text(pa, schema.field(name).type)]
        wanted = [name for name in schema.names if field_of(name, columns)]
        number = 0
        with parquet.ParquetFile(source, read_dictionary=text) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False):
                for place in range(batch.num_rows):
                    number += 1
                    cells = {
                        field_of(name, columns): batch.column(name)[place] for name in batch.schema.names
                    }
                    yield Record(f"row {number}", _content(cells))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).partition("\n")[0][:200]
        raise InvalidData(f"the file is not readable as Parquet ({said}); write it again") from error


def _check_size(metadata: Any, limits: DataLimits) -> None:
    if metadata.num_rows > limits.max_rows:
        raise InvalidData(
            f"the file has {metadata.num_rows} rows; allowed: {limits.max_rows}. Split it",
            metadata={"max_rows": str(limits.max_rows)},
        )
    groups = range(metadata.num_row_groups)
    size_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    if size_bytes > limits.max_unpacked_bytes:
        raise InvalidData(
            f"the file unpacks to {size_bytes} bytes; allowed: {limits.max_unpacked_bytes}. Split it",
            metadata={"max_unpacked_bytes": str(limits.max_unpacked_bytes)},
        )


def _is_text(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _content(cells: dict[str, Any]) -> object:
    """`cells` are scalars of pyarrow, by field."""
    try:
        values = {name: _value(name, cell) for name, cell in cells.items()}
    except InvalidData as error:
        return error
    picture = values.get("image")
    if isinstance(picture, dict) and "bytes" in picture:
        if picture["bytes"] is None:
            return InvalidData("image has no bytes, only a path; write the images into the file")
        values["image"] = picture["bytes"]
    return {name: value for name, value in values.items() if not (value is None and name in MAY_LACK)}


def _value(name: str, cell: Any) -> Any:
    """A cell as Python has it.

    Raises:
        InvalidData: it holds bytes that are no text, or a date, a time or a struct that Python cannot hold.
    """
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{error.object[error.start]:02X}"
        raise InvalidData(f"{shown(name)} is not UTF-8: {found}; write the column again as UTF-8") from error
    except (ValueError, OverflowError) as error:
        raise InvalidData(
            f"{shown(name)} cannot be read ({error}); expected a string, a number, a list of them or an image"
        ) from error
