"""From a row to ids, with the ones that carry loss.

A prompt becomes the same ids in training as in serving: rendered with the generation prompt and
encoded as a whole. An answer is what the template writes after it, through the first end token.

A base without a chat template has no roles: a prompt is raw text as it stands, its completion follows at once, and
an end token follows that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Chat, ChatMessage, Preference, PromptCompletion, Row, Text


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One example as ids; `supervised[i]` says that predicting `token_ids[i]` carries loss.

    Both lists have the same length. The first id is never supervised: nothing precedes it.
    """

    token_ids: list[int]
    supervised: list[bool]

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised)


def encode_row(tokenizer: BaseTokenizer, row: Row, train_on_prompt: bool = False) -> EncodedRow:  # noqa: FBT001, FBT002 - named as in the job's settings
    """Encode a row for training.

    Prompt/completion is a user turn and an assistant turn in the base's chat template, where it has one. A chat
    supervises every assistant turn; what follows the last one is left out. A text is supervised as
    a whole and gets an end token.

    Args:
        tokenizer: the base's.
        row: what to learn.
        train_on_prompt: supervise prompts too.

    Raises:
        InvalidData: nothing would be supervised, the chat template is missing or refuses the messages, or it
            writes earlier turns differently once an answer follows: training would not see what serving sees.
    """
    match row:
        case Text(text):
            encoded = _encode_text(tokenizer, text)
        case Chat(messages):
            encoded = _encode_chat(tokenizer, messages)
        case PromptCompletion(prompt, completion) if not tokenizer.has_chat_template:
            encoded = _encode_completion(tokenizer, prompt, completion)
        case PromptCompletion(prompt, completion):
            turns = (ChatMessage("user", prompt), ChatMessage("assistant", completion))
            encoded = _encode_chat(tokenizer, turns)
    if not any(encoded.supervised):
        raise InvalidData("has no answer to learn from; add an assistant turn")
    if train_on_prompt:
        return EncodedRow(encoded.token_ids, _all_but_first(encoded.token_ids))
    return encoded


def encode_preference(tokenizer: BaseTokenizer, row: Preference) -> tuple[EncodedRow, EncodedRow]:
    """The better answer and the worse one, each after the same conversation; only the answers are supervised.

    Up to their first supervised id both rows have equal ids: what serving would have when it answers.

    Raises:
        InvalidData: as `encode_row`.
    """
    if not tokenizer.has_chat_template:
        prompt = _only_prompt(row.messages)
        answers = (row.chosen, row.rejected)
        chosen, rejected = (_encode_completion(tokenizer, prompt, answer) for answer in answers)
        return chosen, rejected
    chosen, rejected = (
        _encode_chat(tokenizer, (*row.messages, ChatMessage("assistant", answer)), last_answer_only=True)
        for answer in (row.chosen, row.rejected)
    )
    return chosen, rejected


def encode_question(tokenizer: BaseTokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """The ids after which a row's answer is expected: what serving has when it is asked the same.

    Raises:
        InvalidField: the chat template refuses the messages, or is missing and there is more than one turn.
    """
    if tokenizer.has_chat_template or len(messages) > 1:
        return tokenizer.encode_conversation(messages)
    return tokenizer.encode(messages[0].content, add_special_tokens=True)


def _all_but_first(token_ids: Sequence[int]) -> list[bool]:
    return [place > 0 for place in range(len(token_ids))]


def _encode_text(tokenizer: BaseTokenizer, text: str) -> EncodedRow:
    if not text:
        raise InvalidData("has an empty text; expected at least one character")
    token_ids = tokenizer.encode(text, add_special_tokens=True)
    if token_ids[-1:] != [tokenizer.eos_token_id]:
        token_ids.append(tokenizer.eos_token_id)
    return EncodedRow(token_ids, _all_but_first(token_ids))


def _encode_completion(tokenizer: BaseTokenizer, prompt: str, completion: str) -> EncodedRow:
    """Raw text and what follows it, without any template."""
    _check_answer(tokenizer, completion)
    context_ids = tokenizer.encode(prompt, add_special_tokens=True)
    if not context_ids:
        raise InvalidData(
            "has an empty prompt, and this base puts nothing before its text, so the first token could not be "
            "predicted; write a prompt, or use text rows"
        )
    answer_ids = _continuation(tokenizer, prompt, tokenizer.encode(prompt), completion)
    answer_ids = [*answer_ids, tokenizer.eos_token_id]
    return EncodedRow(context_ids + answer_ids, [False] * len(context_ids) + [True] * len(answer_ids))


def _only_prompt(messages: Sequence[ChatMessage]) -> str:
    """The prompt of a preference without turns before it."""
    if len(messages) != 1:
        raise InvalidData(_NO_TEMPLATE)
    return messages[0].content


_NO_TEMPLATE = (
    "is a conversation, and the base has no chat template to write its turns with; use rows with a prompt (as raw "
    "text), text rows, or a base with a chat template"
)


def _encode_chat(
    tokenizer: BaseTokenizer, messages: Sequence[ChatMessage], *, last_answer_only: bool = False
) -> EncodedRow:
    if not tokenizer.has_chat_template:
        raise InvalidData(_NO_TEMPLATE)
    token_ids: list[int] = []
    supervised: list[bool] = []
    end = ""
    for between, answer in _answers(tokenizer, messages):
        # A tokenizer cuts the text at control tokens, so the end token of the turn before stands for
        # all that precedes it, and a long chat is encoded once.
        context = end + between
        context_ids = tokenizer.encode(context)
        between_ids = context_ids[1:] if end else context_ids
        answer_ids = _continuation(tokenizer, context, context_ids, answer)
        if last_answer_only:
            supervised = [False] * len(token_ids)
        token_ids += between_ids + answer_ids
        supervised += [False] * len(between_ids) + [True] * len(answer_ids)
        end = next(end for end in tokenizer.eos_tokens if answer.endswith(end))
    return EncodedRow(token_ids, supervised)


def _answers(tokenizer: BaseTokenizer, messages: Sequence[ChatMessage]) -> Iterator[tuple[str, str]]:
    """For each assistant turn: what stands between the answer before and this one, and this answer."""
    done = ""
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        _check_answer(tokenizer, message.content)
        prompt = _render(tokenizer, messages[:place], add_generation_prompt=True)
        whole = _render(tokenizer, messages[: place + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise InvalidData(
                "cannot be trained with this base: its chat template writes earlier turns differently "
                "once another one follows; use rows with a single answer, or text rows"
            )
        answer = _through_end(tokenizer, whole[len(prompt) :])
        _check_written(tokenizer, answer)
        yield prompt[len(done) :], answer
        done = prompt + answer


def _check_answer(tokenizer: BaseTokenizer, content: str) -> None:
    if not content:
        raise InvalidData("has an empty answer; expected at least one character")
    for end in tokenizer.eos_tokens:
        if end in content:
            raise InvalidData(f"has an answer with the control token {end!r} in it; it would end there")


def _check_written(tokenizer: BaseTokenizer, answer: str) -> None:
    """Refuse an answer of which only the end is left: a template may take parts away, such as thoughts."""
    end = next(end for end in tokenizer.eos_tokens if answer.endswith(end))
    if not answer.removesuffix(end).strip():
        raise InvalidData(
            "has an answer of which the base's chat template writes nothing, so there is nothing to learn from; "
            "change the answer or remove the row"
        )


def _render(tokenizer: BaseTokenizer, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
    try:
        return tokenizer.render(messages, add_generation_prompt=add_generation_prompt)
    except InvalidField as error:
        raise InvalidData(error.message) from error


def _through_end(tokenizer: BaseTokenizer, text: str) -> str:
    """`text` up to and with its first end token, where serving would stop."""
    ends = [(text.find(end), end) for end in tokenizer.eos_tokens if end in text]
    if not ends:
        raise InvalidData(
            "cannot be trained with this base: its chat template ends an answer with none of its end "
            f"tokens ({', '.join(tokenizer.eos_tokens)}), so the model would never learn to stop"
        )
    place, end = min(ends)
    return text[: place + len(end)]


def _continuation(tokenizer: BaseTokenizer, context: str, context_ids: list[int], text: str) -> list[int]:
    """The ids of `text` after a context whose ids are given, as the model would continue it.

    Encoding both together keeps what a tokenizer does only at the start of an input (a leading space)
    out of the answer. Where that would merge the last id of the context with the answer, the answer
    is encoded on its own: at serving time the context's ids stand when the first answer token comes.
    """
    together = tokenizer.encode(context + text)
    if together[: len(context_ids)] == context_ids:
        return together[len(context_ids) :]
    return tokenizer.encode(text)
