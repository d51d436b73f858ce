"""BaseTokenizer against transformers' AutoTokenizer on the same files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.errors import InvalidField
from finetuned_service.text.tokenizer import BaseTokenizer, ChatMessage
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import BRACKETS, CHATML, byte_level, write_byte_fallback, write_tokenizer

CONVERSATION = (
    ChatMessage("user", "what's 'up' <b>today</b>?\n"),
    ChatMessage("assistant", "  It's sunny, 21 degrees 🎉\n"),
    ChatMessage("user", "Größe? 日本語!"),
)
SYSTEM = ChatMessage("system", "You are a helpful assistant.")

INDENTED = """\
{%- set space = namespace(count=0) %}
{% for message in messages %}
    {# a comment #}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set space.count = space.count + 1 %}
{{ space.count }}. {{ message | tojson }} {{ message.content | trim }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{% endfor %}
{% if tools is none and not documents %}no tools{% endif %}
{% if bos_token is defined %}{{ bos_token }}{% endif %}
{{ add_generation_prompt }} {{ {'b': 1, 'a': [1.5, none]} | tojson(indent=1) }}"""


def transformers_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def as_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.mark.parametrize("template", [CHATML, INDENTED], ids=["chatml", "indented"])
@pytest.mark.parametrize("messages", [CONVERSATION, (SYSTEM, *CONVERSATION)], ids=["plain", "system"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_rendering_and_ids_equal_transformers(
    tmp_path: Path, template: str, messages: Sequence[ChatMessage], add_generation_prompt: bool
) -> None:
    directory = write_tokenizer(tmp_path, template=template, bos_token="<|im_start|>")
    oracle = transformers_tokenizer(directory)
    ours = BaseTokenizer.load(directory)

    expected = oracle.apply_chat_template(
        as_dicts(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert expected == ours.render(messages, add_generation_prompt=add_generation_prompt)

    expected_ids = oracle.apply_chat_template(as_dicts(messages), add_generation_prompt=True)["input_ids"]
    assert expected_ids == ours.encode_conversation(messages)


def test_byte_fallback_tokenizer_equals_transformers(tmp_path: Path) -> None:
    directory = write_byte_fallback(tmp_path)
    oracle = transformers_tokenizer(directory)
    ours = BaseTokenizer.load(directory)

    expected = oracle.apply_chat_template(as_dicts(CONVERSATION))["input_ids"]
    assert expected == ours.encode_conversation(CONVERSATION)
    assert oracle.encode("hello 🎉") == ours.encode("hello 🎉", add_special_tokens=True)
    assert oracle.encode("hello 🎉", add_special_tokens=False) == ours.encode("hello 🎉")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pair(directory: Path) -> tuple[BaseTokenizer, Any]:
    return BaseTokenizer.load(directory), transformers_tokenizer(directory)


@given(text=st.text())
def test_encode_decode_equal_transformers_and_round_trip(pair: tuple[BaseTokenizer, Any], text: str) -> None:
    ours, oracle = pair
    token_ids = ours.encode(text)
    assert oracle.encode(text, add_special_tokens=False) == token_ids
    assert oracle.decode(token_ids, skip_special_tokens=True) == ours.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 420)))
def test_decoding_any_ids_equals_transformers(pair: tuple[BaseTokenizer, Any], token_ids: list[int]) -> None:
    ours, oracle = pair
    assert oracle.decode(token_ids, skip_special_tokens=True) == ours.decode(token_ids)


def test_real_packaged_base_equals_transformers(smollm2_directory: Path) -> None:
    oracle = transformers_tokenizer(smollm2_directory)
    ours = BaseTokenizer.load(smollm2_directory)
    for messages in (CONVERSATION, (SYSTEM, *CONVERSATION)):
        expected = oracle.apply_chat_template(as_dicts(messages), add_generation_prompt=True)["input_ids"]
        assert expected == ours.encode_conversation(messages)
    assert frozenset({oracle.eos_token_id}) == ours.eos_token_ids
    assert ours.eos_tokens == ("<|im_end|>",)


@pytest.mark.parametrize("words", ["what now?", " what now?\n", "assistant", "a <|im_end|> b"])
def test_what_closes_a_conversation_is_what_follows_the_words(smollm2_directory: Path, words: str) -> None:
    tokenizer = BaseTokenizer.load(smollm2_directory)
    messages = [ChatMessage("user", "hello"), ChatMessage("assistant", "hi"), ChatMessage("user", words)]
    token_ids = tokenizer.encode_conversation(messages)
    closing = token_ids[len(token_ids) - tokenizer.closing_tokens(messages) :]
    after = "\n" if words.endswith("\n") else ""
    assert closing == tokenizer.encode(f"{after}<|im_end|>\n<|im_start|>assistant\n")


def test_nothing_closes_a_conversation_without_words(smollm2_directory: Path) -> None:
    tokenizer = BaseTokenizer.load(smollm2_directory)
    assert tokenizer.closing_tokens([ChatMessage("user", " ")]) == 0


def test_template_of_the_tokenizer_config_is_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template=None, chat_template="one {{ messages[0].content }}")
    assert BaseTokenizer.load(tmp_path).render([SYSTEM], add_generation_prompt=False) == (
        "one You are a helpful assistant."
    )
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    write_tokenizer(tmp_path, template=None, chat_template=named)
    assert BaseTokenizer.load(tmp_path).render([SYSTEM], add_generation_prompt=False) == "default"


def test_strftime_now_follows_the_clock(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template="{{ strftime_now('%d %b %Y') }}")
    tokenizer = BaseTokenizer.load(tmp_path, clock=lambda: datetime(2024, 7, 26))  # noqa: DTZ001 - only printed
    assert tokenizer.render([SYSTEM], add_generation_prompt=False) == "26 Jul 2024"


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path, template="{{ bos_token }}", bos_token={"content": "<|im_start|>", "lstrip": False}
    )
    assert BaseTokenizer.load(tmp_path).render([SYSTEM], add_generation_prompt=False) == "<|im_start|>"


def test_end_tokens_of_all_files_count(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1, 99_999]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    tokenizer = BaseTokenizer.load(tmp_path)
    assert frozenset({0, 1, 2}) == tokenizer.eos_token_ids
    assert tokenizer.eos_token_id == 2
    assert tokenizer.eos_tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_a_stored_truncation_is_not_applied(tmp_path: Path) -> None:
    trained = byte_level()
    trained.enable_truncation(4)
    trained.enable_padding(length=64)
    write_tokenizer(tmp_path, trained)
    assert (
        BaseTokenizer.load(tmp_path).encode("one two three four five six")
        == byte_level().encode("one two three four five six").ids
    )


def spoil(directory: Path, name: str, text: str | None) -> None:
    if text is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", '{"eos_token": null}', "no end-of-sequence token"),
        ("tokenizer_config.json", '{"eos_token": "<unknown>"}', "no end-of-sequence token"),
        ("chat_template.jinja", "{% for %}", "not a Jinja template"),
    ],
)
def test_broken_bases_are_refused(tmp_path: Path, name: str, text: str | None, found: str) -> None:
    write_tokenizer(tmp_path)
    spoil(tmp_path, name, text)
    with pytest.raises(InvalidField, match=found):
        BaseTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "messages", "found"),
    [
        (None, CONVERSATION, "the base has none"),
        (CHATML, (), "expected at least one"),
        (BRACKETS, (SYSTEM, *CONVERSATION), "system turns are not supported"),
        ("{{ messages[0].content + 1 }}", CONVERSATION, "refused by the base's chat template"),
        ("{{ messages.__class__.__mro__ }}", CONVERSATION, "unsafe"),
        ("{{ messages.append(1) }}", CONVERSATION, "unsafe"),
    ],
)
def test_templates_that_refuse(
    tmp_path: Path, template: str | None, messages: Sequence[ChatMessage], found: str
) -> None:
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path, template=template))
    assert tokenizer.has_chat_template == (template is not None)
    with pytest.raises(InvalidField, match=found):
        tokenizer.render(messages, add_generation_prompt=True)
