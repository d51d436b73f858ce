"""Inputs of calls that encode, as the engine takes them: texts cut to fit, images decoded."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.bases.images import prepare_image
from finetuned_service.bases.inputs import ImageInput
from finetuned_service.engine.messages import Pixels
from finetuned_service.errors import InvalidField, PromptTooLong
from finetuned_service.serving.encoded_values import EncodeInput, ImageContent, TextPair
from finetuned_service.serving.values import Content, Truncation
from finetuned_service.text.tokenizer import BaseTokenizer, EncodedText


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """One input."""

    token_ids: tuple[int, ...]
    """An image is one token that says nothing."""
    truncated_tokens: int = 0
    pixels: Pixels | None = None
    text: EncodedText | None = None
    """As the tokenizer made it, cut to fit; None for an image."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Prepares inputs for one base; exactly one of tokenizer and image is set."""

    tokenizer: BaseTokenizer | None
    image: ImageInput | None
    context_tokens: int

    def prepare(self, item: EncodeInput, truncation: Truncation, field: str) -> PreparedInput:
        """The input as the engine takes it.

        Raises:
            InvalidField: it is of a kind that the base does not take, empty, or does not decode.
            PromptTooLong: it does not fit and no truncation was chosen.
        """
        match item:
            case ImageContent(data, media_type):
                if self.image is None:
                    raise InvalidField.one(field, "is an image; this base takes text")
                image = prepare_image(data, media_type, self.image, f"{field}.image")
                return PreparedInput((0,), pixels=Pixels(image.data, image.shape))
            case Content(text):
                return self._text(text, None, truncation, field)
            case TextPair(text, pair):
                return self._text(text, pair, truncation, field)

    def _text(self, text: str, pair: str | None, truncation: Truncation, field: str) -> PreparedInput:
        if self.tokenizer is None:
            raise InvalidField.one(field, "is text; this base takes one image in each input")
        encoded = self.tokenizer.encode_spans(text, pair)
        if encoded.empty:
            raise InvalidField.one(field, "is empty; give at least one character")
        return self._fitted(encoded, truncation, field)

    def _fitted(self, text: EncodedText, truncation: Truncation, field: str) -> PreparedInput:
        found = len(text.token_ids)
        if found <= self.context_tokens:
            return PreparedInput(text.token_ids, text=text)
        if truncation is Truncation.REJECT:
            raise PromptTooLong(
                f"{field} has {found} tokens; the context holds {self.context_tokens}. Shorten it, or choose a "
                "truncation",
                metadata={"prompt_tokens": str(found), "context_tokens": str(self.context_tokens)},
            )
        kept = text.kept(self.context_tokens, from_end=truncation is Truncation.KEEP_END)
        cut = text.only(kept)
        return PreparedInput(cut.token_ids, truncated_tokens=found - len(kept), text=cut)
