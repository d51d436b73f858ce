"""Whatever bytes come, a file is read or refused as invalid data; nothing else is raised and nothing stays."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from finetuned_service.datasets.formats import choose, parquet_process
from finetuned_service.datasets.formats import parquet as reading
from finetuned_service.datasets.formats.choose import DataFormat
from finetuned_service.datasets.formats.parquet import read_parquet
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData, Unavailable
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


@pytest.fixture
def in_this_process(monkeypatch):
    """Parquet is read here, as its own process would: a process for each of hundreds of files takes minutes."""
    monkeypatch.setattr(choose, "read_parquet_apart", read_parquet)


@pytest.mark.usefixtures("in_this_process")
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


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Makes a script what reads Parquet."""

    def replace(script: str, *, begun: bool = True) -> None:
        begin = "pickle.dump(True, sys.stdout.buffer); sys.stdout.flush()" if begun else ""
        (tmp_path / "reader.py").write_text(f"import os, pickle, sys\n{begin}\n{script}\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        monkeypatch.setattr(parquet_process, "_MODULE", "reader")

    return replace


@pytest.mark.parametrize("end", ["os.abort()", "os._exit(0)", "print('no pickle')"])
def test_a_file_that_ends_its_reader_is_refused(place, reader, end):
    """As std::terminate in pyarrow does."""
    reader(end)
    error = place.refused(PARQUET, DataFormat.PARQUET)
    assert "the file ended its reader (exit code" in error.message


@pytest.mark.parametrize(
    ("end", "begun"),
    [("os._exit(1)", False), ("os.kill(os.getpid(), 15)", True), ("os.kill(os.getpid(), 9)", True)],
)
def test_a_reader_that_somebody_else_ends_says_nothing_of_the_file(place, reader, end, begun):
    """A machine without room for it, one that is shut down, the kernel that wants its memory back."""
    reader(end, begun=begun)
    with pytest.raises(Unavailable, match="not by the file; try again"):
        place.validate(PARQUET, DataFormat.PARQUET)


def test_a_reader_starts_no_threads_and_is_in_no_group_of_ours(place, reader):
    """One for each core of a large machine would take the room of the file; Ctrl-C is the server's."""
    said = "[os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'], os.getpgid(0) == os.getpid()]"
    reader(f"pickle.dump(str({said}), sys.stdout.buffer)")
    with pytest.raises(RuntimeError, match="'1', '1', True"):
        place.validate(PARQUET, DataFormat.PARQUET)


def test_the_bound_is_for_the_file_and_below_that_of_the_machine(place, monkeypatch):
    """What the libraries take is not counted, and a harder limit stays."""
    monkeypatch.setattr(parquet_process, "_MEMORY_BYTES", 64 * 2**20)
    assert place.validate(PARQUET, DataFormat.PARQUET).rows
    script = "import resource, sys; from finetuned_service.datasets.formats.parquet_process import _bound\n"
    script += "resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)); _bound(2**40)\n"
    script += "print(*resource.getrlimit(resource.RLIMIT_AS))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(6 * 2**30)] * 2


def test_a_fault_of_ours_in_the_reader_is_none_of_the_file(place, reader):
    reader("pickle.dump('Traceback: ours', sys.stdout.buffer)")
    with pytest.raises(RuntimeError, match="Traceback: ours"):
        place.validate(PARQUET, DataFormat.PARQUET)


def test_a_reader_ends_with_who_asked_for_its_records(tmp_path):
    source = tmp_path / "rows.parquet"
    source.write_bytes(table(text=["a" * 1000] * 1000))
    records = parquet_process.read_parquet_apart(source, DataLimits(), {})
    assert next(records).place == "row 1"
    records.close()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert children.read_text() == ""


DELTA = ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


def delta(encoding: str, columns: dict[str, list[object]], *leaves: str) -> bytes:
    written = io.BytesIO()
    encodings = dict.fromkeys(leaves, encoding)
    parquet.write_table(
        pa.table(columns), written, use_dictionary=False, column_encoding=encodings, compression="zstd"
    )
    return written.getvalue()


@pytest.mark.parametrize("encoding", DELTA)
def test_text_in_delta_encodings_is_the_same_text(place, encoding):
    flat = {"text": [f"row number {number}" for number in range(200)], "label": ["a", "b"] * 100}
    lists = {"tokens": [["a", "b"], ["c"]] * 100, "tags": [["O", "X"], ["O"]] * 100}
    for columns, leaves in ((flat, ("text", "label")), (lists, ("tokens.list.element",))):
        expected = place.validate(table(**columns), DataFormat.PARQUET)
        assert place.validate(delta(encoding, columns, *leaves), DataFormat.PARQUET) == expected


@pytest.mark.parametrize("encoding", DELTA)
def test_cells_in_delta_encodings_are_no_longer_than_lines(place, encoding):
    columns = {"tokens": [["a" * 100] * 1000], "tags": [["O"] * 1000]}
    content = delta(encoding, columns, "tokens.list.element", "tags.list.element")
    error = place.refused(content, DataFormat.PARQUET, limits=DataLimits(max_line_bytes=50_000))
    assert "'tokens' has 101001 bytes; allowed: 50000" in error.message


def test_text_that_takes_too_much_memory_is_refused(place, monkeypatch):
    """A prefix is repeated in a few bytes: rows of it come to more than the file is said to unpack to."""
    monkeypatch.setattr(parquet_process, "_MEMORY_BYTES", 512 * 2**20)
    content = delta("DELTA_BYTE_ARRAY", {"text": ["a" * 16_000_000] * 32}, "text")
    assert len(content) < 10_000
    error = place.refused(content, DataFormat.PARQUET)
    assert "more memory than its reader may have" in error.message


def test_rows_before_an_encoding_without_dictionaries_come_once(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(table(text=[str(number) for number in range(300)]))

    def breaking(source, text, wanted):
        for number, batch in enumerate(read(source, text, wanted)):
            if text and number == 2:
                raise OSError(f"{reading._NO_DICTIONARY} for DeltaByteArrayDecoder.")
            yield batch

    read = reading._read
    monkeypatch.setattr(reading, "_read", breaking)
    records = list(read_parquet(tmp_path / "rows.parquet", DataLimits(), {}))
    assert [record.content for record in records] == [{"text": str(number)} for number in range(300)]


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
