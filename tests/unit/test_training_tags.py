"""Tags of words: one target for each, at the token that serving answers with, whatever the tokenizer makes of the word."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.bases.convert import import_directory
from finetuned_service.errors import InvalidData
from finetuned_service.serving.head_answers import tagged
from finetuned_service.text.tokenizer import BaseTokenizer, EncodedText
from finetuned_service.text.words import AnsweredWord, answered_words, places_of
from finetuned_service.training.heads.examples import HeadData, read_head_data
from tiny_encoders import save_encoder, word_pieces
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from training_tasks import make_task

CORPUS = ["The cat sat on the mat in Paris today", "東京 都 に 行 く", "cat , dog ."] * 5
MARKS = ["<s>", "<pad>", "</s>", "<unk>"]
SENTENCES = (
    ["😀Bob", "sat", "in", "東京"],
    ["\u00a0Paris", "the", "cat"],
    ["\u200eParis", "\u0301sat", "."],
    [" dog", "ran", "don't"],
)


def byte_level(*, trim_offsets: bool) -> Tokenizer:
    """RoBERTa's kind: a character that is no ASCII is several tokens, and a space may be one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets
    )
    return tokenizer


def sentence_pieces(*, split: bool) -> Tokenizer:
    """XLM-RoBERTa's kind: an unknown first character leaves the word's `▁` alone; without `split` a text is one word."""
    tokenizer = Tokenizer(models.Unigram())
    pieces = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    words = [pre_tokenizers.WhitespaceSplit(), pieces] if split else [pieces]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)  # pyright: ignore[reportArgumentType] - wants one kind
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=MARKS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([word for text in CORPUS for word in text.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "word pieces": word_pieces,
    "bytes": lambda: byte_level(trim_offsets=True),
    "bytes with spaces": lambda: byte_level(trim_offsets=False),
    "sentence pieces": lambda: sentence_pieces(split=True),
    "sentence pieces of a whole text": lambda: sentence_pieces(split=False),
}


def make_base(directory: Path, tokenizer: Tokenizer) -> Path:
    source = save_encoder(directory / "source", vocab_size=400)
    tokenizer.save(str(source / "tokenizer.json"))
    import_directory(source, directory / "base")
    return directory / "base"


def read(directory: Path, base: Path, sentences: list[list[str]], **data: object) -> HeadData:
    """The examples, of rows whose words each have a tag of their own."""
    rows = [{"tokens": words, "tags": [f"T{place}" for place in range(len(words))]} for words in sentences]
    options = {"holdout_fraction": 0, **data}
    task = make_task(directory, base, train=rows, task="token-classification", method="HEAD", data=options)
    return read_head_data(task.spec, base, Path(task.train_path), None, stop=threading.Event())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_word_has_one_target_where_serving_answers_it(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path, TOKENIZERS[kind]())
    tokenizer = BaseTokenizer.load(base, generates=False)
    data = read(tmp_path, base, [*SENTENCES])
    assert not data.report.warnings
    for words, example in zip(SENTENCES, data.train, strict=True):
        assert [data.head.labels[int(target)] for target in example.targets] == [
            f"T{place}" for place in range(len(words))
        ]
        # Whatever is not trained answers with a label that no word has.
        encoded = tokenizer.encode_spans(example.shown)
        outputs = np.zeros((len(encoded.token_ids), len(data.head.labels) + 1), np.float32)
        outputs[:, -1] = 1
        for place, target in zip(example.places, example.targets, strict=True):
            outputs[place, int(target)] = 2
        head = Head(task=data.head.task, problem=Problem.SINGLE_LABEL, labels=(*data.head.labels, "none"))
        told = [label for *_, label, _ in tagged(0, head, outputs, encoded, example.shown).tokens]
        assert [label for label in told if label != "none"] == [f"T{place}" for place in range(len(words))]


def test_words_without_a_token_are_told_and_words_cut_away_are_not(tmp_path: Path) -> None:
    base = make_base(tmp_path, word_pieces())
    row = ["the", "\u200e", "cat", "\u0301", "sat", "on", "the", "mat"]
    data = read(tmp_path, base, [row, row[:3]])
    assert [example.supervised_tokens for example in data.train] == [6, 2]
    (warning,) = data.report.warnings
    assert warning.startswith("of 3 words the tokenizer makes no token")
    data = read(tmp_path, base, [["the"] * 9] * 2, max_row_tokens=8, long_rows="TRUNCATE")
    assert [example.supervised_tokens for example in data.train] == [6, 6]
    assert not any("no token" in warning for warning in data.report.warnings)


def test_a_row_without_any_token_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path, word_pieces())
    with pytest.raises(InvalidData, match="line 2 has no tokens"):
        read(tmp_path, base, [["the", "cat"], ["\u200e", "\u0301"]])


def test_words_end_at_white_space_and_a_token_answers_for_one() -> None:
    text = "a bc d"
    pieces = EncodedText((0, 1, 2, 3), (None, (0, 1), (1, 3), (3, 6)), (None, 0, 0, 0))
    assert answered_words(pieces, text) == [AnsweredWord(1, 0, 1), AnsweredWord(2, 1, 6)]
    assert places_of([(0, 1), (2, 4), (5, 6)], pieces, text) == [1, 2, None]
