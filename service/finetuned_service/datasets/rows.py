"""Rows as JSON: strict parsing, one canonical spelling, and typed reading of what is stored.

A row that would teach nothing is refused, and so is a field nobody reads: a misspelt one is the
likeliest reason for it. `shapes.py` has the table of kinds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, assert_never

from finetuned_service.datasets import conversation, fields
from finetuned_service.datasets.kinds import KIND_OF_TYPE, AnyRow, DatasetRow, LabelledImage, RowKind, kind_of
from finetuned_service.datasets.shapes import check_fields, shape_of
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import (
    Chat,
    ChatMessage,
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    Pair,
    Preference,
    PromptCompletion,
    Row,
    ScoredPair,
    ScoredText,
    Text,
)

_CANONICAL = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def parse_row(obj: object) -> DatasetRow:
    """The row that decoded JSON describes.

    Raises:
        InvalidData: a field is unknown, missing or of the wrong type, or there is nothing to learn.
    """
    found = fields.json_object(obj, "the row")
    shape = shape_of(found)
    check_fields(found, f"a {shape.kind} row", shape.required, shape.optional)
    return _PARSERS[shape.kind](found)


def to_json(row: DatasetRow) -> str:
    """The canonical spelling: fixed order of fields, no spaces, no needless escapes; one line."""
    return _CANONICAL.encode(_object_of(row))


def rows_of(path: Path, kind: type[AnyRow]) -> Iterator[AnyRow]:
    """The rows of a stored dataset, in the order of the file, as values of one class.

    Args:
        path: canonical rows, as `validation.py` writes them.
        kind: the class of row that is expected, such as `LabelledText`.

    Raises:
        InvalidData: the dataset holds rows of another kind, or its file is damaged; names the line.
    """
    for number, row in enumerate(stored_rows(path), start=1):
        if not isinstance(row, kind):
            raise InvalidData(f"line {number} is a {kind_of(row)} row; expected {KIND_OF_TYPE[kind]} rows")
        yield row


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a stored dataset that a language model learns to write: of either of the three kinds.

    Raises:
        InvalidData: the dataset holds rows of another kind, or its file is damaged; names the line.
    """
    for number, row in enumerate(stored_rows(path), start=1):
        if not isinstance(row, Row):
            raise InvalidData(
                f"line {number} is a {kind_of(row)} row; expected PROMPT_COMPLETION, CHAT or TEXT rows"
            )
        yield row


def stored_rows(path: Path) -> Iterator[DatasetRow]:
    """The rows of a stored dataset, whatever they hold.

    Raises:
        InvalidData: the file is damaged; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_row(json.loads(line))
            except (InvalidData, ValueError) as error:
                raise InvalidData(f"line {number} of a stored dataset is damaged: {error}") from error


def _prompt_completion(found: Mapping[str, Any]) -> PromptCompletion:
    completion = fields.text(found["completion"], "completion")
    return PromptCompletion(fields.string(found["prompt"], "prompt"), completion)


def _labelled_text(found: Mapping[str, Any]) -> LabelledText:
    text = fields.text(found["text"], "text")
    return LabelledText(text, fields.label(found["label"], "label"), _text_pair(found))


def _multi_label_text(found: Mapping[str, Any]) -> MultiLabelText:
    text = fields.text(found["text"], "text")
    return MultiLabelText(text, fields.labels(found["labels"], "labels"), _text_pair(found))


def _scored_text(found: Mapping[str, Any]) -> ScoredText:
    text = fields.text(found["text"], "text")
    return ScoredText(text, fields.score(found["score"], "score"), _text_pair(found))


def _text_pair(found: Mapping[str, Any]) -> str:
    return fields.text(found["text_pair"], "text_pair") if "text_pair" in found else ""


def _labelled_tokens(found: Mapping[str, Any]) -> LabelledTokens:
    tokens = fields.tokens(found["tokens"], "tokens")
    return LabelledTokens(tokens, fields.tags(found["tags"], "tags", len(tokens)))


def _pair(found: Mapping[str, Any]) -> Pair:
    anchor = "anchor" if "anchor" in found else "query"
    if "negative" in found and "negatives" in found:
        raise InvalidData("has both negative and negatives; keep one")
    negatives = fields.texts(found["negatives"], "negatives") if "negatives" in found else ()
    if "negative" in found:
        negatives = (fields.text(found["negative"], "negative"),)
    positive = fields.text(found["positive"], "positive")
    if positive in negatives:
        raise InvalidData("has its positive among the negatives; remove it there")
    return Pair(fields.text(found[anchor], anchor), positive, negatives)


def _scored_pair(found: Mapping[str, Any]) -> ScoredPair:
    first, second = (fields.text(found[name], name) for name in ("sentence1", "sentence2"))
    return ScoredPair(first, second, fields.score(found["score"], "score"))


def _preference(found: Mapping[str, Any]) -> Preference:
    if "messages" in found:
        messages = conversation.unanswered(found["messages"])
    else:
        messages = (ChatMessage("user", fields.string(found["prompt"], "prompt")),)
    chosen, rejected = (fields.text(found[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise InvalidData("has the same text chosen and rejected: there is nothing to prefer; remove the row")
    return Preference(messages, chosen, rejected)


def _labelled_image(found: Mapping[str, Any]) -> LabelledImage:
    return LabelledImage(fields.image(found["image"], "image"), fields.label(found["label"], "label"))


def _chat(found: Mapping[str, Any]) -> Chat:
    return Chat(conversation.answered(found["messages"]))


def _text(found: Mapping[str, Any]) -> Text:
    return Text(fields.text(found["text"], "text"))


_PARSERS: Mapping[RowKind, Callable[[Mapping[str, Any]], DatasetRow]] = {
    RowKind.PROMPT_COMPLETION: _prompt_completion,
    RowKind.CHAT: _chat,
    RowKind.TEXT: _text,
    RowKind.LABELLED_TEXT: _labelled_text,
    RowKind.MULTI_LABEL_TEXT: _multi_label_text,
    RowKind.SCORED_TEXT: _scored_text,
    RowKind.LABELLED_TOKENS: _labelled_tokens,
    RowKind.PAIR: _pair,
    RowKind.SCORED_PAIR: _scored_pair,
    RowKind.PREFERENCE: _preference,
    RowKind.LABELLED_IMAGE: _labelled_image,
}


def _object_of(row: DatasetRow) -> dict[str, Any]:  # noqa: C901, PLR0911 - one case for each kind
    match row:
        case PromptCompletion(prompt, completion):
            return {"prompt": prompt, "completion": completion}
        case Chat(messages):
            return {"messages": _messages(messages)}
        case Text(text):
            return {"text": text}
        case LabelledText(text, label, pair):
            return {"text": text, "label": label} | _given(text_pair=pair)
        case MultiLabelText(text, labels, pair):
            return {"text": text, "labels": labels} | _given(text_pair=pair)
        case ScoredText(text, score, pair):
            return {"text": text, "score": score} | _given(text_pair=pair)
        case LabelledTokens(tokens, tags):
            return {"tokens": tokens, "tags": tags}
        case Pair(anchor, positive, negatives):
            return {"anchor": anchor, "positive": positive} | _given(negatives=negatives)
        case ScoredPair(first, second, score):
            return {"sentence1": first, "sentence2": second, "score": score}
        case Preference(messages, chosen, rejected):
            return {"messages": _messages(messages), "chosen": chosen, "rejected": rejected}
        case LabelledImage(image, label):
            return {"image": base64.b64encode(image).decode(), "label": label}
        case _:
            assert_never(row)


def _messages(messages: tuple[ChatMessage, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value}
