"""Small data files of every format, and a directory to validate them in."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from finetuned_service.datasets.formats.choose import DataFormat
from finetuned_service.datasets.kinds import DatasetRow
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.datasets.rows import stored_rows
from finetuned_service.datasets.validation import DatasetFacts, validate
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import LabelledText
from PIL import Image
from pyarrow import parquet

TEXTS = [LabelledText('good, "fine"', "pos"), LabelledText("bad\nvery", "neg"), LabelledText("é", "pos")]
JSONL = "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in TEXTS).encode()
CSV = 'text,label\n"good, ""fine""",pos\r\n"bad\nvery",neg\né,pos\n'.encode()
NOTHING: Mapping[str, str] = {}


def table(**columns: Any) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pa.table(columns), written)
    return written.getvalue()


def picture(colour: int = 0, *, size: tuple[int, int] = (4, 4), kind: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    Image.new("L", size, colour).save(written, kind, **options)
    return written.getvalue()


def archive(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return written.getvalue()


PARQUET = table(text=[row.text for row in TEXTS], label=[row.label for row in TEXTS])
CONLL = b"""-DOCSTART- -X- -X- O

# sent_id = 1
Ada NNP B-NP B-PER
Byron NNP I-NP I-PER
ran VBD B-VP O

# SYM B-NP O
London NNP I-NP B-LOC
"""


class Place:
    """A directory to validate in."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.store.mkdir()
        self.source = directory / "upload"

    def validate(
        self,
        content: bytes,
        file_format: DataFormat,
        columns: Mapping[str, str] = NOTHING,
        limits: DataLimits | None = None,
    ) -> DatasetFacts:
        self.source.write_bytes(content)
        return validate(self.source, self.store / "rows.jsonl", limits or DataLimits(), file_format, columns)

    def rows(
        self, content: bytes, file_format: DataFormat, columns: Mapping[str, str] = NOTHING
    ) -> list[DatasetRow]:
        self.validate(content, file_format, columns)
        return list(stored_rows(self.store / "rows.jsonl"))

    def refused(
        self,
        content: bytes,
        file_format: DataFormat,
        columns: Mapping[str, str] = NOTHING,
        limits: DataLimits | None = None,
    ) -> InvalidData:
        with pytest.raises(InvalidData) as caught:
            self.validate(content, file_format, columns, limits)
        assert list(self.store.iterdir()) == []
        return caught.value
