"""Texts of rows as a base takes them, cut or left out where they are too long. Torch-free."""

from __future__ import annotations

from finetuned_service.errors import InvalidData
from finetuned_service.jobs.specs import DataOptions, LongRows
from finetuned_service.text.tokenizer import BaseTokenizer, EncodedText
from finetuned_service.training.row_faults import too_long


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

    def fitted(self, text: str, pair: str | None = None) -> EncodedText | None:
        """The tokens of a text, or of a pair; None where its row is left out.

        Raises:
            InvalidData: the base takes images, there are no tokens, or too many and `long_rows` says REJECT.
        """
        if self._tokenizer is None:
            raise InvalidData("is a text; this base takes images")
        encoded = self._tokenizer.encode_spans(text, pair)
        found, most = len(encoded.token_ids), self._options.max_row_tokens or 0
        if encoded.empty:
            raise InvalidData("has no tokens")
        if found <= most:
            return encoded
        match self._options.long_rows:
            case LongRows.REJECT:
                raise InvalidData(too_long(found, most))
            case LongRows.DROP:
                return None
            case LongRows.TRUNCATE:
                self.truncated_texts += 1
                return encoded.only(encoded.kept(most, from_end=False))
