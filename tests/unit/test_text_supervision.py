"""What a row becomes in training: the ids that serving would see, and loss on the answers only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetuned_service.errors import InvalidData
from finetuned_service.text.supervision import EncodedRow, encode_preference, encode_question, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Chat, ChatMessage, Preference, PromptCompletion, Text
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import BRACKETS, CHATML, write_byte_fallback, write_tokenizer

USER = ChatMessage("user", "what's the weather?")
SUNNY = ChatMessage("assistant", "It's sunny, 21 degrees.")
THANKS = ChatMessage("user", "thanks 🎉")
WELCOME = ChatMessage("assistant", "You are welcome.")
SYSTEM = ChatMessage("system", "Answer in one line.")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> BaseTokenizer:
    return BaseTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("chatml")))


@pytest.fixture(scope="module")
def brackets(tmp_path_factory: pytest.TempPathFactory) -> BaseTokenizer:
    return BaseTokenizer.load(write_byte_fallback(tmp_path_factory.mktemp("brackets")))


def supervised_texts(tokenizer: BaseTokenizer, row: EncodedRow) -> list[str]:
    """The runs of supervised ids as text, control tokens included."""
    runs: list[list[int]] = [[]]
    for token_id, supervised in zip(row.token_ids, row.supervised, strict=True):
        if supervised:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [tokenizer._tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def test_a_prompt_is_encoded_as_serving_does_it(chatml: BaseTokenizer) -> None:
    row = encode_row(chatml, PromptCompletion(USER.content, SUNNY.content), train_on_prompt=False)
    prompt_ids = chatml.encode_conversation([USER])
    assert prompt_ids == row.token_ids[: len(prompt_ids)]
    assert not any(row.supervised[: len(prompt_ids)])
    assert all(row.supervised[len(prompt_ids) :])
    assert [SUNNY.content + "<|im_end|>"] == supervised_texts(chatml, row)
    assert row.supervised_tokens == len(row.token_ids) - len(prompt_ids)


def test_every_assistant_turn_is_supervised(chatml: BaseTokenizer) -> None:
    messages = (SYSTEM, USER, SUNNY, THANKS, WELCOME)
    row = encode_row(chatml, Chat(messages), train_on_prompt=False)
    whole = chatml.encode(chatml.render(messages, add_generation_prompt=False))
    newline = chatml.encode("\n")
    assert whole == row.token_ids + newline
    assert supervised_texts(chatml, row) == [
        "It's sunny, 21 degrees.<|im_end|>",
        "You are welcome.<|im_end|>",
    ]


def test_ids_equal_transformers_apply_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, write in (("chatml", write_tokenizer), ("brackets", write_byte_fallback)):
        directory = write(tmp_path / name)
        messages = (USER, SUNNY, THANKS, WELCOME)
        oracle = AutoTokenizer.from_pretrained(directory)
        expected = oracle.apply_chat_template([{"role": m.role, "content": m.content} for m in messages])
        row = encode_row(BaseTokenizer.load(directory), Chat(messages), train_on_prompt=False)
        assert expected["input_ids"][: len(row.token_ids)] == row.token_ids
        assert len(expected["input_ids"]) - len(row.token_ids) == (name == "chatml")


def test_turns_after_the_last_answer_are_left_out(chatml: BaseTokenizer) -> None:
    with_tail = encode_row(chatml, Chat((USER, SUNNY, THANKS)), train_on_prompt=False)
    assert encode_row(chatml, Chat((USER, SUNNY)), train_on_prompt=False) == with_tail


def test_no_space_is_put_before_an_answer(brackets: BaseTokenizer) -> None:
    """A tokenizer that puts a space before every input must not put one before the answer."""
    row = encode_row(brackets, Chat((USER, SUNNY, THANKS, WELCOME)), train_on_prompt=False)
    expected = brackets.decode(
        brackets.encode(brackets.render((USER, SUNNY, THANKS, WELCOME), add_generation_prompt=False))
    )
    assert expected == brackets.decode(row.token_ids)
    assert supervised_texts(brackets, row) == ["It's sunny, 21 degrees.</s>", "You are welcome.</s>"]


def test_an_answer_never_changes_the_ids_of_its_prompt(chatml: BaseTokenizer) -> None:
    """Newlines at the seam would merge with the prompt's last one if both were encoded together."""
    answer = "\n\n    return a + b"
    row = encode_row(chatml, PromptCompletion("code", answer), train_on_prompt=False)
    prompt_ids = chatml.encode_conversation([ChatMessage("user", "code")])
    whole = chatml.encode(
        chatml.render(
            [ChatMessage("user", "code"), ChatMessage("assistant", answer)], add_generation_prompt=False
        )
    )
    assert whole[: len(prompt_ids)] != prompt_ids
    assert prompt_ids == row.token_ids[: len(prompt_ids)]
    assert [answer + "<|im_end|>"] == supervised_texts(chatml, row)


CONTENT = st.text(alphabet=st.sampled_from("ab '\n🎉.<|>é"), min_size=1, max_size=12)


@given(prompts=st.lists(CONTENT, min_size=1, max_size=3), answers=st.lists(CONTENT, min_size=3, max_size=3))
def test_any_chat_keeps_its_text_and_its_last_prompt(
    chatml: BaseTokenizer, prompts: list[str], answers: list[str]
) -> None:
    turns = [
        message
        for prompt, answer in zip(prompts, answers, strict=False)
        for message in (ChatMessage("user", prompt), ChatMessage("assistant", answer))
    ]
    row = encode_row(chatml, Chat(tuple(turns)), train_on_prompt=False)
    rendered = chatml.render(turns, add_generation_prompt=False)
    assert rendered.removesuffix("\n") == chatml._tokenizer.decode(row.token_ids, skip_special_tokens=False)
    assert [answer + "<|im_end|>" for answer in answers[: len(prompts)]] == supervised_texts(chatml, row)


def test_train_on_prompt_supervises_all_but_the_first_id(chatml: BaseTokenizer) -> None:
    row = encode_row(chatml, PromptCompletion("a", "b"), train_on_prompt=True)
    assert [False] + [True] * (len(row.token_ids) - 1) == row.supervised


def test_a_text_is_supervised_as_a_whole_and_ended(chatml: BaseTokenizer) -> None:
    row = encode_row(chatml, Text("please deploy"), train_on_prompt=False)
    assert [*chatml.encode("please deploy"), chatml.eos_token_id] == row.token_ids
    assert [False] + [True] * (len(row.token_ids) - 1) == row.supervised


def test_a_text_begins_as_the_tokenizer_begins_it(brackets: BaseTokenizer) -> None:
    row = encode_row(brackets, Text("please deploy"), train_on_prompt=False)
    assert [1, *brackets.encode("please deploy"), 2] == row.token_ids
    assert [False] + [True] * (len(row.token_ids) - 1) == row.supervised


def test_the_first_end_token_ends_the_answer(tmp_path: Path) -> None:
    """Some templates close a turn and then the text; serving stops at the first."""
    template = CHATML.replace("'<|im_end|>'", "'<|im_end|><|endoftext|>'")
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path, template=template))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    tokenizer = BaseTokenizer.load(tmp_path)
    row = encode_row(tokenizer, Chat((USER, SUNNY, THANKS, WELCOME)), train_on_prompt=False)
    assert supervised_texts(tokenizer, row) == [
        "It's sunny, 21 degrees.<|im_end|>",
        "You are welcome.<|im_end|>",
    ]


REWRITES_HISTORY = (
    "{% for m in messages %}<|im_start|>{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %} (last){% endif %}<|im_end|>{% endfor %}"
)
GENERATION_PROMPT_ONLY_ONCE = CHATML.replace(
    "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>' }}"
)


@pytest.mark.parametrize(
    ("template", "row", "found"),
    [
        (CHATML, PromptCompletion("a", ""), "empty answer"),
        (CHATML, Chat((USER,)), "no answer to learn from"),
        (CHATML, Text(""), "empty text"),
        (CHATML, PromptCompletion("a", "b<|im_end|>c"), "control token"),
        (REWRITES_HISTORY, Chat((USER, SUNNY, THANKS, WELCOME)), "writes earlier turns differently"),
        (GENERATION_PROMPT_ONLY_ONCE, Chat((USER, SUNNY)), "writes earlier turns differently"),
        (CHATML.replace("<|im_end|>", "<|im_start|>"), Chat((USER, SUNNY)), "ends an answer with none"),
        (BRACKETS, Chat((SYSTEM, USER, SUNNY)), "system turns are not supported"),
        (None, Chat((USER, SUNNY)), "the base has no chat template"),
        (None, PromptCompletion("", "b"), "empty prompt"),
        (None, PromptCompletion("a", ""), "empty answer"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(
    tmp_path: Path, template: str | None, row: Chat | PromptCompletion | Text, found: str
) -> None:
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path, template=template))
    with pytest.raises(InvalidData, match=found):
        encode_row(tokenizer, row, train_on_prompt=False)


def test_without_a_template_a_completion_follows_its_prompt_at_once(tmp_path: Path) -> None:
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path, template=None))
    row = encode_row(tokenizer, PromptCompletion("say 1:", " one"))
    asked = encode_question(tokenizer, [ChatMessage("user", "say 1:")])
    assert asked == tokenizer.encode("say 1:", add_special_tokens=True)
    assert row.token_ids == [*asked, *tokenizer.encode(" one"), tokenizer.eos_token_id]
    assert row.supervised.index(True) == len(asked)
    pair = encode_preference(tokenizer, Preference((ChatMessage("user", "say 1:"),), " one", " two"))
    assert pair[0] == row
    turns = (ChatMessage("user", "a"), ChatMessage("assistant", "b"), ChatMessage("user", "c"))
    with pytest.raises(InvalidData, match="the base has no chat template"):
        encode_preference(tokenizer, Preference(turns, "d", "e"))


def test_without_a_template_a_first_token_stays_first(tmp_path: Path) -> None:
    """Llama 2's tokenizer puts `<s>` before a whole input."""
    tokenizer = BaseTokenizer.load(write_byte_fallback(tmp_path, template=None))
    row = encode_row(tokenizer, PromptCompletion("please", " deploy"))
    asked = tokenizer.encode("please", add_special_tokens=True)
    assert (asked[0], row.token_ids[: len(asked)]) == (1, asked)
    assert row.supervised.index(True) == len(asked)


@pytest.mark.parametrize("tokens", [lambda t: t.encode_conversation([USER]), lambda t: t.encode("a")])
def test_encoding_is_repeatable(chatml: BaseTokenizer, tokens: Callable[[BaseTokenizer], list[int]]) -> None:
    assert tokens(chatml) == tokens(chatml)


def test_an_answer_that_the_template_takes_away_is_refused(tmp_path: Path) -> None:
    """As templates do that leave thoughts out: the mask would hold the end token alone."""
    template = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path, template=template))
    with pytest.raises(InvalidData, match="writes nothing, so there is nothing to learn from"):
        encode_row(tokenizer, PromptCompletion("a", "<think>so</think>\n"))
    kept = encode_row(tokenizer, PromptCompletion("a", "<think>so</think>b"))
    assert supervised_texts(tokenizer, kept) == ["b<|im_end|>"]


def test_a_preference_is_two_answers_after_the_same_ids(chatml: BaseTokenizer) -> None:
    messages = (SYSTEM, USER, SUNNY, THANKS)
    chosen, rejected = encode_preference(chatml, Preference(messages, "You are welcome.", "What?"))
    prompt_ids = chatml.encode_conversation(messages)
    for row, answer in ((chosen, "You are welcome."), (rejected, "What?")):
        assert row.token_ids[: len(prompt_ids)] == prompt_ids
        assert row.supervised == [False] * len(prompt_ids) + [True] * (len(row.token_ids) - len(prompt_ids))
        assert supervised_texts(chatml, row) == [answer + "<|im_end|>"]
