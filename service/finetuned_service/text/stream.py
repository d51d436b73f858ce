"""The text of one reply while its ids arrive: whole characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from finetuned_service.text.detokenize import detokenizer
from finetuned_service.text.stop import StopMatcher
from finetuned_service.text.tokenizer import BaseTokenizer


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """What a push made certain."""

    text: str
    stopped: str | None
    """The stop string that ended the reply; `text` ends before it."""


@final
class TextStream:
    """Incremental detokenization of one reply, with stop strings.

    The pieces joined are `tokenizer.decode` of all ids, up to the first stop string, however the
    ids are cut into pushes. After a stop string everything is ignored. Stop strings count only in the text
    of the ids after the first `min_tokens`.

    Raises:
        InvalidField: a stop string is empty.
        Unimplemented: the tokenizer's decoder cannot be followed piece by piece.
    """

    def __init__(self, tokenizer: BaseTokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer(tokenizer)
        self._matcher = StopMatcher(stop)
        self.may_stop = bool(stop)
        """It has stop strings."""
        self._early_tokens = min_tokens
        """How many ids are still to come before stop strings count."""
        self.stopped: str | None = None
        """The stop string that ended the reply; `finish` can set it too."""

    def push(self, token_ids: Sequence[int]) -> StreamPiece:
        if self.stopped is not None:
            return StreamPiece("", self.stopped)
        early = ""
        if self._early_tokens:
            early = self._detokenizer.push(token_ids[: self._early_tokens])
            token_ids, count = token_ids[self._early_tokens :], len(token_ids)
            self._early_tokens = max(0, self._early_tokens - count)
        return StreamPiece(early + self._match(self._detokenizer.push(token_ids)), self.stopped)

    def finish(self) -> str:
        """The rest of the text, when no more ids will come."""
        if self.stopped is not None:
            return ""
        text = self._match(self._detokenizer.finish())
        return text if self.stopped is not None else text + self._matcher.finish()

    def _match(self, text: str) -> str:
        released, self.stopped = self._matcher.push(text)
        return released
