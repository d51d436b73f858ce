"""Files of every format become the same rows, and what cannot is refused by its place."""

from __future__ import annotations

import gzip
import io
import stat
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from finetuned_service.datasets.formats.choose import DataFormat, check_mapping, format_of_name
from finetuned_service.datasets.kinds import LabelledImage, RowKind
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.datasets.rows import stored_rows
from finetuned_service.errors import InvalidField
from finetuned_service.text.values import LabelledText, LabelledTokens, MultiLabelText, Pair, ScoredText
from PIL import Image
from tiny_data import CONLL, CSV, JSONL, PARQUET, TEXTS, Place, archive, picture, table


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "file_format"),
    [(JSONL, DataFormat.JSONL), (CSV, DataFormat.CSV), (PARQUET, DataFormat.PARQUET)],
    ids=["jsonl", "csv", "parquet"],
)
def test_the_same_rows_have_one_digest_in_every_format(place, content, file_format, packed):
    expected = place.validate(JSONL, DataFormat.JSONL).digest
    facts = place.validate(gzip.compress(content) if packed else content, file_format)
    assert facts.digest == expected
    assert facts.row_kind is RowKind.LABELLED_TEXT
    assert list(stored_rows(place.store / "rows.jsonl")) == TEXTS
    assert [path.name for path in place.store.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "file_format"),
    [
        (b'{"sentence":"a","mark":"x","id":7}\n', DataFormat.JSONL),
        (b"id,sentence,mark\n7,a,x\n", DataFormat.CSV),
        (table(id=[7], sentence=["a"], mark=["x"]), DataFormat.PARQUET),
    ],
    ids=["jsonl", "csv", "parquet"],
)
def test_columns_are_fields_under_other_names(place, content, file_format):
    columns = {"sentence": "text", "mark": "label"}
    assert place.rows(content, file_format, columns) == [LabelledText("a", "x")]
    (place.store / "rows.jsonl").unlink()
    unmapped = place.refused(content, file_format).message
    assert "unknown field" in unmapped
    lacking = place.refused(content, file_format, {"sentence": "text", "sign": "label"}).message
    assert (
        "the file has no column 'sign', which columns names; it has 'id', 'sentence', 'mark'" in lacking
        or ("line 1: lacks 'sign', which columns names for label" in lacking)
    )


@pytest.mark.parametrize(
    ("file_format", "columns", "said"),
    [
        (
            DataFormat.CSV,
            {"a": "txt"},
            "maps 'a' to 'txt'; allowed: prompt, completion, messages, text, label",
        ),
        (DataFormat.CSV, {"a": "text", "b": "text"}, "maps two columns to one field"),
        (DataFormat.CONLL, {"a": "text"}, "CONLL has no names of columns"),
        (DataFormat.IMAGE_FOLDER, {"a": "label"}, "IMAGE_FOLDER has no names of columns"),
    ],
)
def test_a_mapping_that_no_file_could_follow_is_refused(file_format, columns, said):
    with pytest.raises(InvalidField, match="columns") as caught:
        check_mapping(file_format, columns)
    assert said in caught.value.message


def test_names_of_files_tell_their_format():
    assert format_of_name("s3://bucket/Rows.CSV.gz") is DataFormat.CSV
    assert format_of_name("/a/rows.parquet") is DataFormat.PARQUET
    assert format_of_name("rows.gz") is None


def test_cells_of_csv_are_numbers_and_lists_where_rows_have_them(place):
    scored = place.rows(b"text,text_pair,score\na,,-1.5\nb,c,2\n", DataFormat.CSV)
    assert scored == [ScoredText("a", -1.5), ScoredText("b", 2.0, "c")]
    assert place.rows(b'text,labels\na,"[""x"", ""y""]"\n', DataFormat.CSV) == [
        MultiLabelText("a", ("x", "y"))
    ]


@pytest.mark.parametrize(
    ("content", "place_named", "said"),
    [
        (b"text,score\na,1\n\nb,none\n", "line 4", "score is 'none'; expected a number"),
        (b"text,score\na,1\nb,nan\n", "line 3", "score is nan; expected a finite number"),
        (b"text,labels\na,x|y\n", "line 2", 'labels is \'x|y\'; expected a JSON list, such as ["a", "b"]'),
        (b"text,label\na,x\nb\n", "line 3", "has 1 cells; the header names 2 columns"),
        (b"text,label\na,\n", "line 2", "label is empty; name the class"),
        (b"text,lable\na,x\n", "line 2", "did you mean 'label'?"),
    ],
)
def test_rows_of_csv_are_refused_by_line(place, content, place_named, said):
    error = place.refused(content, DataFormat.CSV)
    assert [violation.field for violation in error.violations] == [place_named]
    assert said in error.violations[0].description


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text;label\na;x\n", "the file has the one column 'text;label'; expected commas between columns"),
        (b"text,text\na,b\n", "the file has a column twice; it has 'text', 'text'"),
        (b'text,label\n"a,x\n', "line 2 is not CSV: unexpected end of data"),
        (b'text,label\n"a"b,x\n', "line 2 is not CSV: ',' expected after '\"'"),
        (b"text,label\n\xff,x\n", "line 2 is not UTF-8: byte 1 is 0xFF; save the file as UTF-8"),
        (b"text,label\n", "the file holds no rows; expected a header line and a line for each row"),
        (b"", "the file holds no rows; expected a header line and a line for each row"),
        (b"PAR1 and so on", "the file looks like PARQUET and the format is CSV; name its format"),
    ],
)
def test_files_that_are_no_csv_are_refused(place, content, said):
    assert said in place.refused(content, DataFormat.CSV).message


def test_parquet_has_numbers_nulls_and_lists(place):
    content = table(anchor=["a", "b"], positive=["c", "d"], negatives=[["e"], None])
    assert place.rows(content, DataFormat.PARQUET) == [Pair("a", "c", ("e",)), Pair("b", "d")]
    assert place.rows(table(text=["a"], label=[3]), DataFormat.PARQUET) == [LabelledText("a", "3")]


@pytest.mark.parametrize(
    ("content", "place_named", "said"),
    [
        (table(text=["a", None], label=["x", "y"]), "row 2", "text is null; expected a string"),
        (table(text=["a"], score=[float("inf")]), "row 1", "score is inf; expected a finite number"),
        (
            table(image=[{"bytes": None, "path": "a.png"}], label=["x"]),
            "row 1",
            "image has no bytes, only a path",
        ),
        (table(image=[b"no image"], label=["x"]), "row 1", "image is of no known format; allowed: PNG, JPEG"),
    ],
)
def test_rows_of_parquet_are_refused_by_number(place, content, place_named, said):
    error = place.refused(content, DataFormat.PARQUET)
    assert [violation.field for violation in error.violations] == [place_named]
    assert said in error.violations[0].description


def test_parquet_that_is_damaged_or_too_large_is_refused(place):
    assert "not readable as Parquet" in place.refused(PARQUET[:-20], DataFormat.PARQUET).message
    repeated = table(text=["x" * 1000] * 3000, label=["a"] * 3000)
    assert len(repeated) < 20_000
    tight = DataLimits(max_rows=2999)
    assert "has 3000 rows; allowed: 2999" in place.refused(repeated, DataFormat.PARQUET, limits=tight).message
    tight = DataLimits(max_unpacked_bytes=1000)
    assert "unpacks to" in place.refused(repeated, DataFormat.PARQUET, limits=tight).message


def test_images_come_in_parquet_as_bytes_or_structs(place):
    image = picture(7)
    for column in ([image], [{"bytes": image, "path": "a.png"}]):
        content = table(image=column, label=["cat"])
        assert place.rows(content, DataFormat.PARQUET) == [LabelledImage(image, "cat")]


def test_conll_sentences_are_rows(place):
    rows = place.rows(CONLL, DataFormat.CONLL)
    assert rows == [
        LabelledTokens(("Ada", "Byron", "ran"), ("B-PER", "I-PER", "O")),
        LabelledTokens(("#", "London"), ("O", "B-LOC")),
    ]
    tabs = b"New York\tB-LOC\nis\tO\n"
    assert place.rows(tabs, DataFormat.CONLL) == [LabelledTokens(("New York", "is"), ("B-LOC", "O"))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a O\n\nb O\nc\n", "line 4 has one column; expected a token and its tag"),
        (b"a O\n\nb X O\n", "line 3 has 3 columns; the lines before have 2"),
        (b"a O\n\nb O\n\xff O\n", "line 4 is not UTF-8"),
        (b"a O\n\n1\tb\tX\tO\n2\tc\tX\tO\n", "line 3 has 4 columns"),
        (b"a O\n\nb I-LOC\n", "tags[0] is 'I-LOC' with no entity 'LOC' open before it"),
    ],
)
def test_sentences_are_refused_by_their_first_line(place, content, said):
    error = place.refused(content, DataFormat.CONLL)
    assert [violation.field for violation in error.violations] == ["line 3"]
    assert said in error.violations[0].description


def test_comments_of_conll_u_are_told_from_tokens(place):
    rows = place.rows(
        b"# newdoc\n# text = a b\n#sent_id=1\n#a=b O\nb O\n\n# newpar\n10\xc2\xa0000 B-N\n# O\n",
        DataFormat.CONLL,
    )
    assert rows == [
        LabelledTokens(("#a=b", "b"), ("O", "O")),
        LabelledTokens(("10\u00a0000", "#"), ("B-N", "O")),
    ]


def test_the_numbers_of_conll_u_are_no_tokens(place):
    tree = "# text = Ada ran\n1-2\tAda ran\t_\t_\n1\tAda\tPROPN\t_\n2\tran\tVERB\tSpaceAfter=No\n"
    for content in (f"{tree}\n1\tYes\tX\t_\n", f"1\tYes\tX\t_\n\n{tree}"):
        error = place.refused(content.encode(), DataFormat.CONLL)
        assert "the first column counts the tokens, as in CoNLL-U; expected the token first" in error.message
    numbers = b"Ada PROPN O\nran VERB O\n\n1 NUM O\n2 NUM O\n"
    assert place.rows(numbers, DataFormat.CONLL)[1] == LabelledTokens(("1", "2"), ("O", "O"))
    assert len(place.rows(b"1 O\n2 O\n", DataFormat.CONLL)) == 1


def test_a_file_without_empty_lines_is_not_held_in_memory(place):
    error = place.refused(b"word O\n" * 1000, DataFormat.CONLL, limits=DataLimits(max_line_bytes=100))
    assert "the sentence is longer than 100 bytes at line 17" in error.message


def test_folders_of_a_zip_are_classes(place):
    cat, dog = picture(1), picture(2, kind="JPEG")
    content = archive(
        {"pets/dog/b.jpg": dog, "pets/cat/a.png": cat, "__MACOSX/pets/x": b"x", "pets/cat/.DS_Store": b"x"}
    )
    assert place.rows(content, DataFormat.IMAGE_FOLDER) == [
        LabelledImage(cat, "cat"),
        LabelledImage(dog, "dog"),
    ]


def linked() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        entry = zipfile.ZipInfo("cat/link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(entry, "/etc/passwd")
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "entry", "said"),
    [
        (archive({"../cat/a.png": picture()}), "../cat/a.png", "points out of the zip"),
        (archive({"cat/../../a.png": picture()}), "cat/../../a.png", "points out of the zip"),
        (archive({"/cat/a.png": picture()}), "/cat/a.png", "points out of the zip"),
        (archive({"C:/cat/a.png": picture()}), "C:/cat/a.png", "points out of the zip"),
        (archive({"cat\\..\\a.png": picture()}), "cat\\..\\a.png", "points out of the zip"),
        (linked(), "cat/link.png", "is a link or a device"),
        (archive({"cat/a.png": b"\0" * 2_000_000}), "cat/a.png", "times its size in the zip; allowed: 100"),
        (archive({"a.png": picture()}), "a.png", "lies in no folder"),
        (
            archive({"train/cat/a.png": picture(), "test/cat/a.png": picture()}),
            "train/cat/a.png",
            "has its folder in 'train', and the ones before in 'test'",
        ),
        (archive({"cat/a.png": picture()}, zipfile.ZIP_BZIP2), "cat/a.png", "is compressed in a way"),
    ],
)
def test_entries_that_escape_or_explode_are_named(place, content, entry, said):
    message = place.refused(content, DataFormat.IMAGE_FOLDER).message
    assert f"the entry {entry!r} of the zip" in message
    assert said in message


def test_a_zip_is_refused_by_what_it_would_unpack_to_and_by_its_list(place):
    content = archive({f"cat/{n}.png": picture(size=(64, 64)) for n in range(9)}, zipfile.ZIP_STORED)
    tight = DataLimits(max_unpacked_bytes=300)
    assert "the zip unpacks to" in place.refused(content, DataFormat.IMAGE_FOLDER, limits=tight).message
    longer = content[:-10] + (2**24 + 1).to_bytes(4, "little") + content[-6:]
    assert "list of entries is too long" in place.refused(longer, DataFormat.IMAGE_FOLDER).message
    assert "is not a zip" in place.refused(b"PK\x03\x04 no more", DataFormat.IMAGE_FOLDER).message


def animated() -> bytes:
    frames = [Image.new("L", (4, 4), colour) for colour in (0, 255)]
    written = io.BytesIO()
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:])
    return written.getvalue()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (picture(size=(400, 400))[:-60], "image does not decode"),
        (picture(kind="JPEG", size=(64, 64))[:300], "image does not decode"),
        (b"GIF89a", "image"),
        (picture(size=(2000, 1000)), "image has 2000 x 1000 = 2000000 pixels; allowed: 1000000"),
        (picture(kind="TIFF"), "image is of no known format; allowed: PNG, JPEG, WEBP, BMP, GIF"),
        (animated(), "image has several frames; save one of them"),
        (b"\0" * 3000, "has 3000 bytes; allowed: 2900"),
    ],
)
def test_images_that_do_not_decode_are_named(place, image, said):
    limits = DataLimits(max_image_pixels=1_000_000, max_image_bytes=2900)
    content = archive({"cat/a.png": picture(), "cat/b.png": image}, zipfile.ZIP_STORED)
    error = place.refused(content, DataFormat.IMAGE_FOLDER, limits=limits)
    assert [violation.field for violation in error.violations] == ["entry 'cat/b.png'"]
    assert said in error.violations[0].description
    assert error.message.startswith("1 entry is not usable; nothing was stored.")


def test_an_image_with_as_many_pixels_as_a_bomb_is_not_decoded(place):
    error = place.refused(archive({"cat/a.png": _huge_png()}), DataFormat.IMAGE_FOLDER)
    assert "pixels; allowed: 33554432" in error.message


def _huge_png() -> bytes:
    """A PNG that says it is 60000 x 60000."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checked

    head = (60_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_gzip_unpacks_within_bounds(place):
    bomb = gzip.compress(b'{"text":"' + b"x" * 3_000_000 + b'"}\n')
    assert len(bomb) < 10_000
    error = place.refused(bomb, DataFormat.JSONL, limits=DataLimits(max_unpacked_bytes=1_000_000))
    assert "unpacks to more than 1000000 bytes, which is the limit" in error.message
    assert "gzip in gzip" in place.refused(gzip.compress(gzip.compress(JSONL)), DataFormat.JSONL).message
    assert "the gzip file is damaged" in place.refused(gzip.compress(JSONL)[:-9], DataFormat.JSONL).message


def test_more_labels_than_allowed_are_refused(place):
    error = place.refused(CSV, DataFormat.CSV, limits=DataLimits(max_labels=1))
    assert "the rows have more than 1 different labels" in error.message


def _repeated(text: str, times: int) -> bytes:
    """A file of a row whose cells are in its dictionary once."""
    tokens = pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))
    column = pa.ListArray.from_arrays(pa.array([0, times], pa.int32()), tokens)
    return table(tokens=column, tags=[["O"] * times])


def test_a_cell_that_a_file_repeats_is_counted_before_it_is_unpacked(place):
    content = _repeated("x" * 10**6, 4000)  # 4 GB
    assert len(content) < 100_000
    limits = DataLimits(max_line_bytes=10**5)
    tracemalloc.start()
    error = place.refused(content, DataFormat.PARQUET, limits=limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "'tokens' has 4000004001 bytes; allowed: 100000. Shorten or split the row" in error.message
    assert most < 10**7
    assert place.rows(_repeated("x", 3), DataFormat.PARQUET) == [LabelledTokens(("x",) * 3, ("O",) * 3)]


def test_cells_of_parquet_are_no_longer_than_lines(place):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 2000}]
    for column in ({"text": ["a", "b" * 2000]}, {"messages": [messages[:1] * 2, messages]}):
        error = place.refused(table(**column), DataFormat.PARQUET, limits=DataLimits(max_line_bytes=1000))
        assert [violation.field for violation in error.violations][-1] == "row 2"
        assert "bytes; allowed: 1000" in error.violations[-1].description


def test_rows_take_no_more_than_a_file_may_unpack_to(place):
    content = table(text=["x" * 1000] * 400)
    limits = DataLimits(max_unpacked_bytes=100_000)
    assert len(content) < 10_000
    error = place.refused(content, DataFormat.PARQUET, limits=limits)
    assert "the rows up to row 99 take" in error.message
    assert "allowed: 100000. Split the file" in error.message
