"""Whatever bytes come, a file is read or refused as invalid data; nothing else is raised and nothing stays."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from finetuned_service.datasets.formats.choose import DataFormat
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData
from pyarrow import parquet
from tiny_data import CONLL, CSV, JSONL, PARQUET, Place, archive, picture, table

NO_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"a\xff"], pa.binary()).buffers())
"""Strings, the second of which is no UTF-8."""
FAR_DAY = pa.array([2**31 - 1], pa.int32()).view(pa.date32())
"""A date that Python has no number for."""
TWICE_NAMED = pa.StructArray.from_arrays([pa.array(["a"])] * 2, names=["bytes", "bytes"])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_column_twice_in_parquet_is_told_as_in_csv(place):
    written = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), written)
    message = place.refused(written.getvalue(), DataFormat.PARQUET).message
    assert message == "the file has a column twice; it has 'text', 'text'"


@pytest.mark.parametrize(
    ("content", "row", "said"),
    [
        (table(text=NO_TEXT, label=["x", "y"]), "row 2", "'text' is not UTF-8: byte 2 is 0xFF; write"),
        (table(text=["a"], label=FAR_DAY), "row 1", "'label' cannot be read (days=2147483647"),
        (table(image=TWICE_NAMED, label=["x"]), "row 1", "'image' cannot be read (Converting to Python"),
    ],
)
def test_cells_of_parquet_that_python_cannot_hold_are_named(place, content, row, said):
    error = place.refused(content, DataFormat.PARQUET)
    assert [violation.field for violation in error.violations] == [row]
    assert said in error.violations[0].description


def test_a_name_of_a_column_that_is_no_text_is_refused(place):
    content = PARQUET.replace(b"label", b"lab\xffl")
    assert "not readable as Parquet" in place.refused(content, DataFormat.PARQUET).message


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
ZIP = archive({"cat/é.png": picture()})


def changed(record: bytes, offset: int, value: bytes, content: bytes = ZIP) -> bytes:
    """`content` with other bytes at an offset of its first record of a kind (APPNOTE 4.3.7, 4.3.12)."""
    at = content.index(record) + offset
    return content[:at] + value + content[at + len(value) :]


def nameless() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made, made.open(zipfile.ZipInfo(""), "w") as entry:
        entry.write(picture())
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive({".": b"", "cat/a.png": picture()}), "the entry '.' of the zip has no name of a file"),
        (nameless(), "the entry '' of the zip has no name of a file"),
        (changed(CENTRAL, 8, b"\x20\x08"), "is compressed in a way that is not read"),
        (changed(CENTRAL, 8, b"\x40\x08"), "is encrypted; write the zip without a password"),
        (changed(CENTRAL, 6, b"\xff"), "not readable as a zip (zip file version 25.5)"),
        (changed(CENTRAL, 46 + 4, b"\xff"), "not readable as a zip ('utf-8' codec can't decode"),
        (changed(LOCAL, 30 + 4, b"\xff"), "is damaged in the zip ('utf-8' codec can't decode"),
        (changed(b"PK\x05\x06", 16, b"\xff\xff"), "is said to lie outside of the file"),
    ],
    ids=["dot", "no name", "patched", "encrypted", "version", "listed name", "own name", "offset"],
)
def test_a_zip_that_the_library_does_not_read_is_refused(place, content, said):
    error = place.refused(content, DataFormat.IMAGE_FOLDER)
    assert said in error.message


def test_a_zip_may_list_the_folder_it_was_made_in(place):
    content = archive({"./": b"", "./cat/a.png": picture()})
    assert place.validate(content, DataFormat.IMAGE_FOLDER).rows == 1


SOUND = {
    "jsonl": (DataFormat.JSONL, JSONL + b'{"text": "a", "score": 1e3}\n'),
    "gzip": (DataFormat.JSONL, gzip.compress(JSONL, mtime=0)),
    "csv": (DataFormat.CSV, CSV + b'text,labels\na,"[""x""]"\n'),
    "conll": (DataFormat.CONLL, CONLL),
    "parquet": (DataFormat.PARQUET, table(anchor=["é", "b"], positive=["c", "d"], negatives=[["e"], None])),
    "images in parquet": (DataFormat.PARQUET, table(image=[{"bytes": picture()}], label=["x"])),
    "deflated zip": (DataFormat.IMAGE_FOLDER, ZIP),
    "stored zip": (DataFormat.IMAGE_FOLDER, archive({"cat/a.png": picture()}, zipfile.ZIP_STORED)),
}


@pytest.mark.parametrize("name", list(SOUND))
def test_damaged_bytes_are_read_or_refused_as_invalid_data(place, name):
    file_format, sound = SOUND[name]
    chance = random.Random(name)
    # Damaged sizes must not make the test itself unpack or decode much.
    limits = DataLimits(max_unpacked_bytes=2**20, max_image_bytes=2**16, max_image_pixels=2**16)
    for _ in range(300):
        with suppress(InvalidData):
            place.validate(damaged(sound, chance), file_format, limits=limits)
        assert {path.name for path in place.store.iterdir()} <= {"rows.jsonl"}


def damaged(sound: bytes, chance: random.Random) -> bytes:
    """`sound` cut short, or with a few bytes changed or lost."""
    content = bytearray(sound)
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(content[: chance.randrange(len(content))])
    if kind == 1:
        start = chance.randrange(len(content))
        del content[start : start + chance.randrange(1, 9)]
    for _ in range(chance.choice([1, 1, 2, 4])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)
