"""Validation of uploads: canonical rows and their digest, or a refusal by line that leaves nothing."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.rows import read_rows
from finetuned_service.datasets.validation import DataLimits, DatasetFacts, validate_jsonl
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import Text
from hypothesis import given
from hypothesis import strategies as st

GOOD = b'{"prompt": "a", "completion": "b"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "store"
    directory.mkdir()
    return directory / "rows.jsonl"


def validate(content: bytes, target: Path, limits: DataLimits | None = None) -> DatasetFacts:
    source = target.parent.parent / "upload"
    source.write_bytes(content)
    return validate_jsonl(source, target, limits or DataLimits())


def refused(content: bytes, target: Path, limits: DataLimits | None = None) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        validate(content, target, limits)
    assert list(target.parent.iterdir()) == []
    return caught.value


def lines_of(error: InvalidData) -> list[str]:
    return [violation.field for violation in error.violations]


def test_facts_and_canonical_rows(target: Path) -> None:
    facts = validate(b'{"completion": "\\u00e9", "prompt": "a"}\n' + GOOD, target)
    canonical = '{"prompt":"a","completion":"é"}\n{"prompt":"a","completion":"b"}\n'.encode()
    assert canonical == target.read_bytes()
    assert facts == DatasetFacts(
        RowKind.PROMPT_COMPLETION,
        rows=2,
        size_bytes=len(canonical),
        digest=f"sha256:{hashlib.sha256(canonical).hexdigest()}",
        report=facts.report,
    )
    assert [target] == list(target.parent.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        GOOD + GOOD,
        GOOD + GOOD.rstrip(),
        b"\xef\xbb\xbf" + GOOD + GOOD,
        GOOD.replace(b"\n", b"\r\n") * 2,
        GOOD + b"\n  \n\r\n" + GOOD + b"\n\n",
        b" " + GOOD + b'{"completion":"b",\t"prompt":"\\u0061"}',
    ],
    ids=["plain", "no last newline", "byte order mark", "CRLF", "empty lines", "other spelling"],
)
def test_spelling_does_not_change_the_digest(target: Path, content: bytes) -> None:
    assert validate(GOOD + GOOD, target.with_name("plain.jsonl")).digest == validate(content, target).digest


@given(texts=st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip())), min_size=1, max_size=6))
def test_any_texts_are_kept_as_they_are(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    target = tmp_path_factory.mktemp("any") / "rows.jsonl"
    source = target.with_name("upload")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    facts = validate_jsonl(source, target, DataLimits())
    assert [Text(text) for text in texts] == list(read_rows(target))
    assert len(texts) == facts.rows
    assert target.stat().st_size == facts.size_bytes


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_an_empty_dataset_is_refused(target: Path, content: bytes) -> None:
    error = refused(content, target)
    assert error.message == "the file holds no rows; expected one JSON object a line"


@pytest.mark.parametrize(
    ("line", "description"),
    [
        (b'{"prompt": "a", "completoin": "b"}', "did you mean 'completion'?"),
        (b'{"prompt": "a", "completion": ""}', "completion is empty"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn"),
        (b'{"text": ""}', "text is empty"),
        (b"[]", "the row is a list"),
        (
            b'{"prompt": "a",',
            "is not JSON: Expecting property name enclosed in double quotes at character 16",
        ),
        (b'{"prompt": "a", "completion": "b"} {}', "is not JSON: Extra data at character 36"),
        (b'{"prompt": "a", "completion": "\xff"}', "is not UTF-8: byte 32 is 0xFF; save the file as UTF-8"),
        (b'{"prompt": "a", "completion": "\xed\xa0\x80"}', "is not UTF-8: byte 32 is 0xED"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "a", "completion": "b", "prompt": "c"}', "has the field 'prompt' twice in one object"),
        (b'{"prompt": NaN, "completion": "b"}', "holds NaN, which is not JSON"),
        (b'{"prompt": -Infinity, "completion": "b"}', "holds -Infinity, which is not JSON"),
        (b'{"prompt": ' + b"1" * 5000 + b', "completion": "b"}', "too many digits"),
        (b'{"prompt": 1e999, "completion": "b"}', "prompt is a number"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"prompt": "a\tb", "completion": "b"}', "Invalid control character"),
        (CHAT.strip(), "is a CHAT row; line 1 is a PROMPT_COMPLETION row and a dataset holds one kind"),
    ],
)
def test_bad_lines_are_named(target: Path, line: bytes, description: str) -> None:
    error = refused(GOOD + b"\n" + line + b"\n" + GOOD, target)
    assert lines_of(error) == ["line 3"]
    assert description in error.violations[0].description
    assert error.message.startswith("1 line is not usable; nothing was stored. line 3: ")
    assert error.metadata == {"invalid_rows": "1"}


def test_utf16_is_recognized(target: Path) -> None:
    error = refused(GOOD.decode().encode("utf-16"), target)
    assert "the file looks like UTF-16" in error.violations[0].description


def test_twenty_bad_lines_are_listed_and_all_are_counted(target: Path) -> None:
    error = refused(GOOD + b"nonsense\n" * 50 + GOOD, target)
    assert [f"line {number}" for number in range(2, 22)] == lines_of(error)
    assert error.message.startswith("50 lines are not usable; the first 20 are listed; nothing was stored. ")
    assert error.metadata == {"invalid_rows": "50"}


def test_a_hopeless_file_is_not_read_to_its_end(target: Path) -> None:
    error = refused(b"nonsense\n" * 10_001 + GOOD, target)
    assert error.message.startswith("at least 10000 lines are not usable; the first 20 are listed; ")
    assert error.metadata == {"invalid_rows": "10000"}


def test_a_file_of_empty_lines_is_not_read_to_its_end(target: Path) -> None:
    error = refused(b"\n" * 5 + GOOD, target, DataLimits(max_rows=2))
    assert error.message == "the file has more than 4 lines, which is the limit. Split it"
    assert validate(b"\n" * 3 + GOOD, target, DataLimits(max_rows=2)).rows == 1


def test_a_line_of_20_mb_is_refused_without_being_held_in_memory(target: Path) -> None:
    source = target.parent.parent / "upload"
    with source.open("wb") as file:
        file.write(GOOD + b'{"text": "')
        for _ in range(20):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + GOOD)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidData) as caught:
            validate_jsonl(source, target, DataLimits())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines_of(caught.value) == ["line 2"]
    assert "is longer than 1048576 bytes" in caught.value.violations[0].description
    assert peak_bytes < 4 * 1024 * 1024


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_the_line_limit_is_exact(target: Path, start: bytes, end: bytes) -> None:
    line = b'{"text":"12345"}'
    exact, tight = DataLimits(max_line_bytes=len(line)), DataLimits(max_line_bytes=len(line) - 1)
    for tail in (b"", line + b"\n") if end else (b"",):
        assert validate(start + line + end + tail, target, exact).rows == 1 + bool(tail)
        target.unlink()
        expected = ["line 1", "line 2"] if tail else ["line 1"]
        assert expected == lines_of(refused(start + line + end + tail, target, tight))


@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last_end=st.booleans(),
    max_line_bytes=st.integers(12, 30),
)
def test_line_numbers_stay_right_around_long_lines(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    end: bytes,
    last_end: bool,
    max_line_bytes: int,
) -> None:
    lines = [b'{"text":"%s"}' % (b"x" * length) for length in lengths]
    content = end.join(lines) + (end if last_end else b"")
    expected = [
        f"line {number}"
        for number, line in enumerate(lines, start=1)
        if len(line) > max_line_bytes or line == b'{"text":""}'
    ]
    source = tmp_path_factory.mktemp("lines") / "upload"
    source.write_bytes(content)
    try:
        validate_jsonl(source, source.with_name("rows"), DataLimits(max_line_bytes=max_line_bytes))
        found: list[str] = []
    except InvalidData as error:
        found = lines_of(error)
    assert expected == found


def test_too_many_rows_and_too_large_a_file_are_refused(target: Path) -> None:
    error = refused(GOOD * 3, target, DataLimits(max_rows=2))
    assert "more than 2 rows" in error.message
    error = refused(GOOD * 3, target, DataLimits(max_bytes=len(GOOD) * 3 - 1))
    assert f"the file has {len(GOOD) * 3} bytes; allowed: {len(GOOD) * 3 - 1}" in error.message
    assert validate(GOOD * 3, target, DataLimits(max_rows=3, max_bytes=len(GOOD) * 3)).rows == 3


def test_a_refusal_leaves_an_earlier_target_as_it_was(target: Path) -> None:
    validate(GOOD, target)
    before = target.read_bytes()
    with pytest.raises(InvalidData):
        validate(GOOD + b"nonsense", target)
    assert before == target.read_bytes()
    assert [target] == list(target.parent.iterdir())
