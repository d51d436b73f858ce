"""What quality is measured on."""

from __future__ import annotations

import pytest
from finetuned_service.datasets.rows import to_json
from finetuned_service.errors import InvalidField
from finetuned_service.quantization import text
from finetuned_service.quantization.text import measured_windows
from finetuned_service.text.general import general_text
from finetuned_service.text.supervision import encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import PromptCompletion, Text
from tiny_tokenizers import write_byte_fallback, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return BaseTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def write_rows(path, rows):
    path.write_text("".join(f"{to_json(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_windows_of_the_general_text_join_to_its_beginning(tokenizer):
    windows = measured_windows(tokenizer, None, context_tokens=4096)
    joined = [token for window in windows for token in window]
    assert {len(window) for window in windows[:-1]} == {text.WINDOW_TOKENS}
    assert len(windows) <= text.MAX_WINDOWS
    assert joined == tokenizer.encode(general_text())[: len(joined)]


def test_the_general_text_is_long_plain_and_varied():
    assert general_text().isascii()
    assert 3000 <= len(general_text().split()) <= 4500
    paragraphs = general_text().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) >= 25


def test_windows_fit_a_short_context(tokenizer):
    assert {len(w) for w in measured_windows(tokenizer, None, context_tokens=32)} == {32}


def test_each_window_of_a_base_with_a_bos_token_begins_with_it(tmp_path):
    with_bos = BaseTokenizer.load(write_byte_fallback(tmp_path))
    windows = measured_windows(with_bos, None, context_tokens=64)
    assert {window[0] for window in windows} == {1}
    assert {len(window) for window in windows} == {64}


def test_rows_are_measured_as_they_are_trained_on(tokenizer, tmp_path):
    rows = [PromptCompletion("deploy", "please"), Text("The weather in Paris today.")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert measured_windows(tokenizer, path, 4096) == [encode_row(tokenizer, row).token_ids for row in rows]


def test_a_long_row_becomes_several_windows(tokenizer, tmp_path):
    row = Text("a" * 1300)
    path = write_rows(tmp_path / "rows.jsonl", [row])
    windows = measured_windows(tokenizer, path, 4096)
    assert [token for window in windows for token in window] == encode_row(tokenizer, row).token_ids
    assert max(map(len, windows)) == text.WINDOW_TOKENS


def test_of_many_rows_the_first_are_measured(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [Text(f"row {n}") for n in range(200)])
    assert len(measured_windows(tokenizer, path, 4096)) == text.MAX_WINDOWS


def test_nothing_to_predict_is_refused(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(InvalidField, match="nothing to measure on"):
        measured_windows(tokenizer, path, 4096)
