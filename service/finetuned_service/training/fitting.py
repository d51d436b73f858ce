"""Texts of rows as a base takes them, cut or left out where they are too long. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.specs import DataOptions, LongRows
from finetuned_service.text.tokenizer import BaseTokenizer, EncodedText
from finetuned_service.training.row_faults import too_long


@dataclass(frozen=True, slots=True)
class FittedText:
    """A text of a row."""

    encoded: EncodedText
    """As much of it as a row may have."""
    whole: EncodedText
    """Before it was cut."""

    @property
    def whole_tokens(self) -> int:
        return len(self.whole.token_ids)


class TextFitter:
    """Encodes texts with resolved options, and counts those that it cut.

    Args:
        tokenizer: of the base; None for one that takes images.
        options: resolved.
    """

    def __init__(self, tokenizer: BaseTokenizer | None, options: DataOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        self.truncated_texts = 0
        """A row may have several."""

    def fits(self, text: str, pair: str | None = None) -> bool:
        """Whether its row is used; asked of all rows before any is held out."""
        if self._tokenizer is None or self._options.long_rows is not LongRows.DROP:
            return True
        try:
            found = len(self._tokenizer.encode_spans(text, pair).token_ids)
        except InvalidField:
            return True  # what cannot be encoded is told with its line, when it is
        return found <= (self._options.max_row_tokens or 0)

    def fitted(self, text: str, pair: str | None = None) -> FittedText:
        """The tokens of a text, or of a pair.

        Raises:
            InvalidData: the base takes images, there are no tokens, or too many and `long_rows` does not cut them.
        """
        if self._tokenizer is None:
            raise InvalidData("is a text; this base takes images")
        encoded = self._tokenizer.encode_spans(text, pair)
        found, most = len(encoded.token_ids), self._options.max_row_tokens or 0
        if encoded.empty:
            raise InvalidData("has no tokens")
        if found <= most:
            return FittedText(encoded, encoded)
        if self._options.long_rows is not LongRows.TRUNCATE:
            raise InvalidData(too_long(found, most))
        self.truncated_texts += 1
        return FittedText(encoded.only(encoded.kept(most, from_end=False)), encoded)
