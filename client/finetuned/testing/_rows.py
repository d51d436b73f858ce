"""Files of datasets as the fake server reads them: their form and their labels, without a library.

Kinds of rows are known by the names of their fields; what the fields hold is not looked at. Parquet
needs a library that the light client does not have.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from finetuned.errors import InvalidData, Unimplemented, Violation
from finetuned.v1 import common_pb2
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.values.datasets import DatasetFormat, format_of_name

Row: TypeAlias = dict[str, Any]

_MAX_VIOLATIONS = 20
_OPTIONAL = {"text_pair", "negatives", "negative"}
_LISTS = {"labels", "tokens", "tags", "negatives", "messages"}
_FORMATS = {
    DatasetFormat.CSV: pb.DATASET_FORMAT_CSV,
    DatasetFormat.PARQUET: pb.DATASET_FORMAT_PARQUET,
    DatasetFormat.CONLL: pb.DATASET_FORMAT_CONLL,
    DatasetFormat.IMAGE_FOLDER: pb.DATASET_FORMAT_IMAGE_FOLDER,
}
_KINDS = {
    frozenset({"prompt", "completion"}): pb.ROW_KIND_PROMPT_COMPLETION,
    frozenset({"messages"}): pb.ROW_KIND_CHAT,
    frozenset({"text"}): pb.ROW_KIND_TEXT,
    frozenset({"text", "label"}): pb.ROW_KIND_LABELLED_TEXT,
    frozenset({"text", "labels"}): pb.ROW_KIND_MULTI_LABEL_TEXT,
    frozenset({"text", "score"}): pb.ROW_KIND_SCORED_TEXT,
    frozenset({"tokens", "tags"}): pb.ROW_KIND_LABELLED_TOKENS,
    frozenset({"anchor", "positive"}): pb.ROW_KIND_PAIR,
    frozenset({"query", "positive"}): pb.ROW_KIND_PAIR,
    frozenset({"sentence1", "sentence2", "score"}): pb.ROW_KIND_SCORED_PAIR,
    frozenset({"prompt", "chosen", "rejected"}): pb.ROW_KIND_PREFERENCE,
    frozenset({"messages", "chosen", "rejected"}): pb.ROW_KIND_PREFERENCE,
    frozenset({"image", "label"}): pb.ROW_KIND_LABELLED_IMAGE,
}


def check_format(file_format: pb.DatasetFormat) -> None:
    """Refuse what the fake server cannot read."""
    if file_format == pb.DATASET_FORMAT_PARQUET:
        raise Unimplemented(
            "the fake server does not read DATASET_FORMAT_PARQUET; available: JSONL, CSV, CONLL, IMAGE_FOLDER",
            metadata={"feature": "DATASET_FORMAT_PARQUET"},
        )


def format_of(name: str, file_format: pb.DatasetFormat) -> pb.DatasetFormat:
    """The format that is asked for, or what the file's name tells."""
    if file_format != pb.DATASET_FORMAT_UNSPECIFIED:
        return file_format
    return _FORMATS.get(format_of_name(name), pb.DATASET_FORMAT_JSONL)


def read_rows(
    data: bytes, file_format: pb.DatasetFormat, columns: Mapping[str, str]
) -> tuple[list[Row], pb.RowKind]:
    """The rows of a file, all of one kind.

    Raises:
        InvalidData: with the places of rows that are none.
    """
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    rows: list[Row] = []
    kinds: set[pb.RowKind] = set()
    violations: list[Violation] = []
    for place, found in _records(data, file_format):
        try:
            row = _row(found, columns)
            kinds.add(_KINDS[frozenset(row) - _OPTIONAL])
            rows.append(row)
        except (ValueError, TypeError, KeyError, AttributeError):
            known = " or ".join(str(sorted(keys)) for keys in _KINDS)
            violations.append(Violation(place, f"expected a JSON object with the keys {known}"))
    if violations:
        raise InvalidData(
            f"{len(violations)} rows are not usable; nothing was stored",
            violations=violations[:_MAX_VIOLATIONS],
            metadata={"invalid_rows": str(len(violations))},
        )
    if len(kinds) != 1:
        raise InvalidData("the file has no rows" if not rows else "the file mixes kinds of rows")
    return rows, kinds.pop()


def report_of(rows: Sequence[Row]) -> pb.DatasetReport:
    """What the rows hold; repeated rows are those that are equal in every character."""
    lengths = sorted(sum(len(text) for text in row.values() if isinstance(text, str)) for row in rows)
    labels: Counter[str] = Counter()
    for row in rows:
        labels.update(row.get("labels") or row.get("tags") or ([row["label"]] if "label" in row else []))
    counts = sorted(labels.items(), key=lambda item: (-item[1], item[0]))

    def at(part: float) -> int:
        return lengths[max(0, -int(-part * len(lengths) // 1) - 1)]

    return pb.DatasetReport(
        characters=common_pb2.LengthSummary(
            median=at(0.5),
            p90=at(0.9),
            p95=at(0.95),
            p99=at(0.99),
            longest=lengths[-1],
            mean=sum(lengths) / len(lengths),
        ),
        labels=[common_pb2.LabelCount(label=str(label), count=count) for label, count in counts],
        imbalance_ratio=counts[0][1] / counts[-1][1] if counts else 0.0,
        duplicate_rows=len(rows) - len({json.dumps(row, sort_keys=True) for row in rows}),
    )


def _row(found: str | Row, columns: Mapping[str, str]) -> Row:
    row: Row = json.loads(found) if isinstance(found, str) else found
    return {columns[name]: value for name, value in row.items() if name in columns} if columns else row


def _records(data: bytes, file_format: pb.DatasetFormat) -> Iterator[tuple[str, str | Row]]:
    match file_format:
        case pb.DATASET_FORMAT_CSV:
            for number, row in enumerate(csv.DictReader(io.StringIO(data.decode())), start=2):
                yield f"line {number}", {name: _cell(name, cell) for name, cell in row.items()}
        case pb.DATASET_FORMAT_CONLL:
            for sentence in data.decode().strip().split("\n\n"):
                cells = [line.split() for line in sentence.splitlines()]
                yield "line 1", {"tokens": [one[0] for one in cells], "tags": [one[-1] for one in cells]}
        case pb.DATASET_FORMAT_IMAGE_FOLDER:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for name in archive.namelist():
                    if not name.endswith("/"):
                        label = PurePosixPath(name).parent.name
                        yield f"entry {name!r}", {"image": archive.read(name).hex(), "label": label}
        case _:
            for number, line in enumerate(data.splitlines(), start=1):
                yield f"line {number}", line.decode(errors="replace")


def _cell(name: str, cell: str) -> Any:
    if name == "score":
        return float(cell)
    return json.loads(cell) if name in _LISTS else cell
