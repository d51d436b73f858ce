"""When two rows are the same for a reader: case, width of letters and white space aside.

Exactly the same after that is what counts; paraphrases are not found.
"""

from __future__ import annotations

import hashlib
import unicodedata

from finetuned_service.datasets.kinds import DatasetRow, LabelledImage
from finetuned_service.text.values import (
    Chat,
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    Pair,
    Preference,
    PromptCompletion,
    ScoredPair,
    ScoredText,
    Text,
)


def texts_of(row: DatasetRow) -> tuple[str, ...]:  # noqa: PLR0911 - one case for each kind
    """All that a row makes a model read or write; nothing for an image, and no labels."""
    match row:
        case PromptCompletion(prompt, completion):
            return (prompt, completion)
        case Chat(messages):
            return tuple(message.content for message in messages)
        case Text(text):
            return (text,)
        case LabelledText() | MultiLabelText() | ScoredText():
            return (row.text, row.text_pair) if row.text_pair else (row.text,)
        case LabelledTokens(tokens):
            return (" ".join(tokens),)
        case Pair(anchor, positive, negatives):
            return (anchor, positive, *negatives)
        case ScoredPair(first, second):
            return (first, second)
        case Preference(messages, chosen, rejected):
            return (*(message.content for message in messages), chosen, rejected)
        case LabelledImage():
            return ()


def fingerprint(row: DatasetRow) -> int:
    """64 bits of what the row is about: equal for rows that a reader would take for the same.

    Labels and scores have no part in it: the same text with another label is the same text.
    """
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(row, LabelledImage):
        digest.update(row.image)
    for text in texts_of(row):
        digest.update(_plain(text).encode() + b"\0")
    return int.from_bytes(digest.digest(), "little")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
