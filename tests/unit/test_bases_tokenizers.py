"""Tokenizers whose two files disagree: what comes in as a base makes the ids of `AutoTokenizer`, the others are refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.tokenizer_settings import check_tokenizer
from finetuned_service.errors import InvalidField
from finetuned_service.text.tokenizer import BaseTokenizer
from tiny_encoders import save_encoder, word_pieces
from tiny_tokenizers import byte_fallback
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

UNSAID = "unsaid"
TEXTS = ("The cat", " cat É é", "東京 x", "cat  sat")
CORPUS = ["The cat sat on the mat in Paris today", "東京 都 に 行 く é É Äh ab", "the cat sat"] * 5
BERT_MARKS = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token")}
ROBERTA_ORDER = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROBERTA_MARKS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
ALBERT_MARKS = BERT_MARKS | {
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
}


def bert(*, lowercase: bool, strip_accents: bool | None, chinese: bool) -> Tokenizer:
    tokenizer = word_pieces()
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    for word in ("The", "É", "é", "東", "京", "東京"):
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(state))


def roberta(*, add_prefix_space: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=ROBERTA_ORDER,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    return tokenizer


def sentence_pieces(scheme: str, marks: list[str], first: str, last: str, *steps: Any) -> Tokenizer:
    """`first` and `last` stand around a text; `marks` have the first ids, where transformers' class wants them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]  # pyright: ignore[reportArgumentType] - wants one kind
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(list(steps))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (first, last)],
    )
    return tokenizer


def albert(*, lowercase: bool, keep_accents: bool) -> Tokenizer:
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not keep_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    marks = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return sentence_pieces("always", marks, "[CLS]", "[SEP]", *steps)


class Verdicts:
    """Writes the files, and compares whether they are accepted with whether the ids are `AutoTokenizer`'s."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.accepted = self.refused = 0

    def check(self, tokenizer: Tokenizer, model_type: str, marks: dict[str, str], **settings: Any) -> None:
        said = {key: value for key, value in settings.items() if value is not UNSAID}
        tokenizer.save(str(self._directory / "tokenizer.json"))
        (self._directory / "tokenizer_config.json").write_text(json.dumps(marks | said))
        (self._directory / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs: Any = AutoTokenizer.from_pretrained(self._directory)
        ours = BaseTokenizer.load(self._directory, generates=False)
        same = all(theirs(text)["input_ids"] == list(ours.encode_spans(text).token_ids) for text in TEXTS)
        try:
            check_tokenizer(self._directory, {"model_type": model_type})
        except InvalidField:
            assert not same, (model_type, said)
            self.refused += 1
        else:
            assert same, (model_type, said)
            self.accepted += 1


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, None])
def test_capitals_and_accents_of_bert(tmp_path: Path, lowercase: bool, strip_accents: bool | None) -> None:
    verdicts = Verdicts(tmp_path)
    tokenizer = bert(lowercase=lowercase, strip_accents=strip_accents, chinese=True)
    named: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}
    for lower, accents in itertools.product((UNSAID, True, False), (None, True, False)):
        settings = {"do_lower_case": lower, "strip_accents": accents}
        verdicts.check(tokenizer, "bert", BERT_MARKS, **named, **settings)
    # The class of the model type, and the one that takes tokenizer.json as it is.
    verdicts.check(tokenizer, "distilbert", BERT_MARKS, do_lower_case=False)
    verdicts.check(
        tokenizer, "bert", BERT_MARKS, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    )
    verdicts.check(
        bert(lowercase=lowercase, strip_accents=strip_accents, chinese=False), "bert", BERT_MARKS, **named
    )
    assert min(verdicts.accepted, verdicts.refused) >= 2


def test_a_space_before_the_first_word(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    for said, tokenizer_class in itertools.product(
        (UNSAID, True, False), (UNSAID, "RobertaTokenizerFast", "PreTrainedTokenizerFast")
    ):
        for prefixed in (True, False):
            tokenizer = roberta(add_prefix_space=prefixed)
            settings = {"add_prefix_space": said, "tokenizer_class": tokenizer_class}
            verdicts.check(tokenizer, "roberta", ROBERTA_MARKS, **settings)
    for said, scheme in itertools.product((UNSAID, True, False), ("always", "never", "first")):
        tokenizer = sentence_pieces(scheme, ROBERTA_ORDER, "<s>", "</s>")
        for model_type, name in (("xlm-roberta", "XLMRobertaTokenizer"), ("camembert", UNSAID)):
            settings = {"add_prefix_space": said, "tokenizer_class": name}
            verdicts.check(tokenizer, model_type, ROBERTA_MARKS, **settings)
    assert (verdicts.accepted, verdicts.refused) == (18, 18)


def test_capitals_and_accents_of_albert(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    for lowercase, keep_accents in itertools.product((True, False), repeat=2):
        tokenizer = albert(lowercase=lowercase, keep_accents=keep_accents)
        for lower, keep in itertools.product((UNSAID, False), (UNSAID, True)):
            settings = {"do_lower_case": lower, "keep_accents": keep}
            verdicts.check(tokenizer, "albert", ALBERT_MARKS, **settings, mask_token="[MASK]")
    assert (verdicts.accepted, verdicts.refused) == (4, 12)


def test_a_contradiction_is_refused_when_a_base_comes_in(tmp_path: Path) -> None:
    source = save_encoder(tmp_path / "source")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, **BERT_MARKS}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        InvalidField, match=r"has do_lower_case False, its tokenizer\.json True; .*save_pretrained"
    ):
        import_directory(source, tmp_path / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(source)
    import_directory(source, tmp_path / "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "base")
    ours = BaseTokenizer.load(tmp_path / "base", generates=False)
    assert tokenizer("The cat")["input_ids"] == list(ours.encode_spans("The cat").token_ids)


@pytest.mark.parametrize(
    ("model_type", "said", "refused"),
    [("llama", False, True), ("llama", True, False), ("mistral", False, False)],
)
def test_a_space_before_a_llama_s_text(tmp_path: Path, model_type: str, said: bool, refused: bool) -> None:
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": said, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if refused:
        with pytest.raises(InvalidField, match=r"has add_prefix_space False, its tokenizer\.json True"):
            check_tokenizer(tmp_path, {"model_type": model_type})
    else:
        check_tokenizer(tmp_path, {"model_type": model_type})


def test_capitals_that_sentence_transformers_takes_away(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for tokenizer in (
        bert(lowercase=True, strip_accents=None, chinese=True),
        albert(lowercase=True, keep_accents=True),
    ):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        check_tokenizer(tmp_path, {"model_type": "bert"})
    roberta(add_prefix_space=False).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        InvalidField, match=r"sentence_bert_config\.json has do_lower_case True, .*json False"
    ):
        check_tokenizer(tmp_path, {"model_type": "roberta"})
