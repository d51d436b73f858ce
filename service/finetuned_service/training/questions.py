"""Held-out rows as questions, with and without the prompt that the plain base gets to make up for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetuned_service.errors import InvalidField
from finetuned_service.jobs.specs import Baseline
from finetuned_service.text.supervision import EncodedRow, encode_question, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Chat, ChatMessage, Preference, PromptCompletion, Row, Text


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out row as a user would ask it."""

    messages: tuple[ChatMessage, ...]
    expected: str

    @property
    def prompt(self) -> str:
        """The last thing said, to be shown."""
        return self.messages[-1].content


def questions(rows: Sequence[Row | Preference], limit: int) -> list[Question]:
    """At most `limit` rows that have an answer, spread evenly over all of them."""
    asked = [question for row in rows if (question := _question(row)) is not None]
    if len(asked) <= limit:
        return asked
    return [asked[place * len(asked) // limit] for place in range(limit)]


def _question(row: Row | Preference) -> Question | None:
    match row:
        case PromptCompletion(prompt, completion):
            return Question((ChatMessage("user", prompt),), completion)
        case Chat(messages):
            return Question(messages[:-1], messages[-1].content)
        case Preference(messages, chosen):
            return Question(messages, chosen)
        case Text():
            return None


def matches(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, but for white space around it."""
    return answer.strip() == expected.strip()


def refuse_unwritable(tokenizer: BaseTokenizer, baseline: Baseline) -> None:
    """Refuse an instruction or examples where there is no template to write them in.

    Raises:
        InvalidField: naming the setting.
    """
    if baseline != Baseline() and not tokenizer.has_chat_template:
        raise InvalidField.one(
            "spec.evaluation.baseline",
            "is set, and the base has no chat template to write it in; leave it out, and write what the plain base "
            "should see into the prompts of the rows",
        )


def encode_prompt(tokenizer: BaseTokenizer, question: Question, baseline: Baseline) -> list[int]:
    """The ids of a question after the baseline's context, through the head of the answer."""
    return encode_question(tokenizer, _after_baseline(tokenizer, question.messages, baseline))


def encode_scored(tokenizer: BaseTokenizer, row: Row, baseline: Baseline) -> EncodedRow:
    """The row after the baseline's context, of which nothing is supervised."""
    if not tokenizer.has_chat_template:
        return encode_row(tokenizer, row)
    match row:
        case Text():
            return encode_row(tokenizer, row)
        case PromptCompletion(prompt, completion):
            messages = (ChatMessage("user", prompt), ChatMessage("assistant", completion))
        case Chat(messages):
            pass
    encoded = encode_row(tokenizer, Chat(_after_baseline(tokenizer, messages, baseline)))
    return EncodedRow(encoded.token_ids, _last_turns(encoded.supervised, len(baseline.examples)))


def _after_baseline(
    tokenizer: BaseTokenizer, messages: tuple[ChatMessage, ...], baseline: Baseline
) -> tuple[ChatMessage, ...]:
    """The conversation after the baseline's instruction and examples, in a form that the template takes."""
    whole = _with_baseline(messages, baseline)
    added_system = whole[0].role == "system" and messages[0].role != "system"
    return _without_system(whole) if added_system and not _renders(tokenizer, whole) else whole


def _with_baseline(messages: tuple[ChatMessage, ...], baseline: Baseline) -> tuple[ChatMessage, ...]:
    """The conversation after the baseline's instruction and examples; a row's own system turn stays."""
    system, rest = baseline.instruction, messages
    if messages[0].role == "system":
        system, rest = f"{system}\n\n{messages[0].content}".strip(), messages[1:]
    shown = tuple(
        turn
        for example in baseline.examples
        for turn in (ChatMessage("user", example.prompt), ChatMessage("assistant", example.completion))
    )
    return (*((ChatMessage("system", system),) if system else ()), *shown, *rest)


def _without_system(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The system turn at the head of the first user turn, for templates that know no system role."""
    system, first, *rest = messages
    return (replace(first, content=f"{system.content}\n\n{first.content}"), *rest)


def _renders(tokenizer: BaseTokenizer, messages: tuple[ChatMessage, ...]) -> bool:
    try:
        tokenizer.render(messages, add_generation_prompt=False)
    except InvalidField:
        return False
    return True


def _last_turns(supervised: Sequence[bool], skipped_turns: int) -> list[bool]:
    """The flags without the first turns; between two answers there always stands a user's turn."""
    kept: list[bool] = []
    turn = 0
    for place, flag in enumerate(supervised):
        turn += flag and not (place and supervised[place - 1])
        kept.append(flag and turn > skipped_turns)
    return kept
