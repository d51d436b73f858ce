"""Apache Parquet: columns of strings, numbers, lists of them, and images as bytes.

Text is read as dictionaries, in lists too, so that a value that a small file repeats a million times is in memory once; how
large a cell is, is known before Python has it. Nothing here bounds what pyarrow itself takes: `parquet_process.py` does.
pyarrow is imported when it is needed: most uploads are lines.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetuned_service.datasets.formats.columns import MAY_LACK, check_header, field_of
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.datasets.shapes import shown
from finetuned_service.errors import InvalidData

_BATCH_ROWS = 64
_NO_DICTIONARY = "Not yet implemented: DecodeArrow of DictAccumulator"
"""What pyarrow says of text in DELTA_BYTE_ARRAY and DELTA_LENGTH_BYTE_ARRAY that is to be read as a dictionary."""


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
            names = head.schema_arrow.names
            leaves = [head.metadata.schema.column(number) for number in range(head.metadata.num_columns)]
            text = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        check_header(names, columns)
        wanted = [name for name in names if field_of(name, columns)]
        number = 0
        for batch in _batches(source, text, wanted):
            fields = {
                (field := field_of(name, columns)): _Column(field, batch.column(name), limits)
                for name in batch.schema.names
            }
            for place in range(batch.num_rows):
                number += 1
                yield Record(f"row {number}", _content(fields, place))
    except MemoryError as error:
        raise InvalidData(
            f"the file takes more memory than its reader may have ({error}); write it again, with fewer or shorter values "
            "in a row"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).partition("\n")[0][:200]
        raise InvalidData(f"the file is not readable as Parquet ({said}); write it again") from error


def _batches(source: Path, text: Sequence[str], wanted: Sequence[str]) -> Generator[Any]:
    """Some rows at a time; without dictionaries from where an encoding is met that cannot be read as one.

    Which encodings a file has is not asked: of damaged metadata that ends the process.
    """
    done_rows = 0
    try:
        for batch in _read(source, text, wanted):
            yield batch
            done_rows += batch.num_rows
    except OSError as error:
        if _NO_DICTIONARY not in str(error):
            raise
    else:
        return
    for batch in _read(source, (), wanted):
        if batch.num_rows > done_rows:
            yield batch.slice(done_rows)
        done_rows = max(0, done_rows - batch.num_rows)


def _read(source: Path, text: Sequence[str], wanted: Sequence[str]) -> Generator[Any]:
    from pyarrow import parquet  # noqa: PLC0415 - see above

    # Extensions would not be read as dictionaries.
    with parquet.ParquetFile(source, read_dictionary=list(text), arrow_extensions_enabled=False) as file:
        yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(wanted), use_threads=False)


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


class _Column:
    """Some rows of what becomes a field."""

    def __init__(self, name: str, array: Any, limits: DataLimits) -> None:
        self._name, self._array = name, array
        # An image is asked for its own limit when it is decoded.
        self._most = limits.max_line_bytes + (limits.max_image_bytes if name == "image" else 0)
        self._small = _size(array) <= self._most

    def at(self, place: int) -> Any:
        """A cell as Python has it.

        Raises:
            InvalidData: it is too large, or holds bytes that are no text, or a date, a time or a struct that Python
                cannot hold.
        """
        if not self._small and (size_bytes := _size(self._array.slice(place, 1))) > self._most:
            raise InvalidData(
                f"{shown(self._name)} has {size_bytes} bytes; allowed: {self._most}. Shorten or split the row"
            )
        return _value(self._name, self._array[place])


def _content(fields: Mapping[str, _Column], place: int) -> object:
    try:
        values = {name: column.at(place) for name, column in fields.items()}
    except InvalidData as error:
        return error
    picture = values.get("image")
    if isinstance(picture, dict) and "bytes" in picture:
        if picture["bytes"] is None:
            return InvalidData("image has no bytes, only a path; write the images into the file")
        values["image"] = picture["bytes"]
    return {name: value for name, value in values.items() if not (value is None and name in MAY_LACK)}


def _value(name: str, cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{error.object[error.start]:02X}"
        raise InvalidData(f"{shown(name)} is not UTF-8: {found}; write the column again as UTF-8") from error
    except (ValueError, OverflowError) as error:
        raise InvalidData(
            f"{shown(name)} cannot be read ({error}); expected a string, a number, a list of them or an image"
        ) from error


def _size(array: Any) -> int:
    """Bytes of the text and the numbers of an array of pyarrow, one at least for each, when no dictionary shortens them."""
    import pyarrow as pa  # noqa: PLC0415 - see above
    from pyarrow import compute as functions  # noqa: PLC0415 - see above

    compute: Any = functions  # it makes them when it is imported
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return len(array) + (compute.sum(lengths).as_py() or 0)
    if any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        return len(array) + (compute.sum(compute.binary_length(array)).as_py() or 0)
    if pa.types.is_nested(kind):
        parts = array.flatten() if pa.types.is_struct(kind) else [array.flatten()]
        return len(array) + sum(map(_size, parts))
    return int(array.nbytes) if pa.types.is_fixed_size_binary(kind) else len(array)
