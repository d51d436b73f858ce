"""The tokenizer and chat template of a base, read from its directory. No torch, no transformers.

Gives the ids that transformers' `AutoTokenizer` gives from the same `tokenizer.json`; a base whose `tokenizer_config.json`
contradicts that is refused when it comes in (`bases/tokenizer_settings.py`). As there, the text of a control token
(`<|im_end|>`) inside a message becomes that token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from finetuned_service.errors import InvalidField
from finetuned_service.text.template import ChatTemplate
from finetuned_service.text.values import ChatMessage

__all__ = ["BaseTokenizer", "ChatMessage", "EncodedText"]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names that transformers gives to templates as variables."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A whole input, with the tokens that the tokenizer puts around it."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]
    """For each token the characters it stands for, start and end; None for one that was put around."""
    words: tuple[int | None, ...]
    """For each token the number of the word that it is a piece of, as the tokenizer cuts words."""
    texts: tuple[int | None, ...] = ()
    """Of a pair, for each token the text that it stands in, 0 or 1; None for one that was put around."""
    type_ids: tuple[int, ...] = ()
    """Of a pair, for each token what the tokenizer calls its type."""

    @property
    def empty(self) -> bool:
        """It has no tokens but those that were put around."""
        return all(span is None for span in self.spans)

    def kept(self, most_tokens: int, *, from_end: bool) -> list[int]:
        """Which tokens stay if there is room for so many: those put around, and the first or last others."""
        text = [place for place, span in enumerate(self.spans) if span is not None]
        room = max(0, most_tokens - (len(self.spans) - len(text)))
        second = [place for place in text if self.texts and self.texts[place] == 1]
        first = text[: len(text) - len(second)]
        # The longer text of a pair is cut first, as transformers' `longest_first` does.
        kept_second = min(len(second), max(room // 2, room - len(first)))
        dropped: set[int] = set()
        for part, most in ((first, room - kept_second), (second, kept_second)):
            dropped |= set(part[: max(0, len(part) - most)] if from_end else part[most:])
        return [place for place in range(len(self.spans)) if place not in dropped]

    def only(self, places: Sequence[int]) -> EncodedText:
        """The tokens at these places."""
        return EncodedText(
            tuple(self.token_ids[place] for place in places),
            tuple(self.spans[place] for place in places),
            tuple(self.words[place] for place in places),
            tuple(self.texts[place] for place in places) if self.texts else (),
            tuple(self.type_ids[place] for place in places) if self.type_ids else (),
        )

    @property
    def second_start(self) -> int:
        """The first token of type 1; 0 where there is none."""
        return self.type_ids.index(1) if 1 in self.type_ids else 0


class BaseTokenizer:
    """Text to ids and back, and conversations to text. Immutable, safe to share between threads.

    Use `load`; the constructor takes the parts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        eos_token_id: int | None,
        eos_token_ids: frozenset[int],
        embeddings: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._embeddings = embeddings if embeddings is not None and embeddings < size else None
        self._template = template
        self._special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._eos_token_id = eos_token_id
        self.eos_token_ids = eos_token_ids
        """All that end a reply."""
        self.eos_tokens = tuple(
            tokenizer.decode([i], skip_special_tokens=False) for i in sorted(eos_token_ids)
        )
        """Their texts."""
        state: Any = json.loads(tokenizer.to_str())["decoder"]
        self.decoder: Mapping[str, Any] | None = state
        """The decoder as tokenizer.json describes it; None joins tokens by spaces."""

    @classmethod
    def load(
        cls, directory: Path, *, clock: Callable[[], datetime] | None = None, generates: bool = True
    ) -> BaseTokenizer:
        """Read tokenizer.json, the chat template and the end tokens of a base.

        Args:
            directory: with tokenizer.json; chat_template.jinja, tokenizer_config.json,
                generation_config.json and config.json are read where they exist.
            generates: the base does, so that it must name an end of sequence.
            clock: for templates that print the date; fix it where prompts must repeat exactly.

        Raises:
            InvalidField: a file is missing or broken, or no end-of-sequence token is named.
        """
        tokenizer = _open(directory / "tokenizer.json")
        # A file may carry the truncation of somebody's training run; cutting silently is never wanted.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_json(directory / "tokenizer_config.json")
        special_tokens = {
            name: text for name in _SPECIAL_TOKENS if (text := _token_text(config.get(name))) is not None
        }
        ends = _eos_token_ids(tokenizer, special_tokens.get("eos_token"), directory) if generates else []
        if generates and not ends:
            raise InvalidField.one(
                "base",
                "names no end-of-sequence token that its tokenizer knows; expected eos_token in "
                "tokenizer_config.json or eos_token_id in generation_config.json or config.json",
            )
        source = _template_source(directory, config)
        template = None
        if source is not None:
            template = (
                ChatTemplate(source, special_tokens)
                if clock is None
                else ChatTemplate(source, special_tokens, clock=clock)
            )
        return cls(
            tokenizer,
            template,
            eos_token_id=ends[0] if ends else None,
            eos_token_ids=frozenset(ends),
            embeddings=next(_integers(_read_json(directory / "config.json").get("vocab_size")), None),
        )

    @property
    def eos_token_id(self) -> int:
        """The one that ends a plain text; asked for by bases that generate only."""
        assert self._eos_token_id is not None, "the base does not generate"
        return self._eos_token_id

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @cached_property
    def drops_first_space(self) -> bool:
        """A text that begins with a space loses it, as with tokenizers like Llama 2's: the space begins their first word."""
        mark = self._tokenizer.token_to_id("▁")
        return mark is not None and self.decode([mark, mark]) == " "

    @property
    def vocabulary_size(self) -> int:
        """Ids that have a text are below this; a model's embedding may be larger."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`; with `add_special_tokens` as a whole input (a first bos, where the base has it).

        Raises:
            InvalidField: it has a token that the base has no embedding for.
        """
        return self._embedded(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_spans(self, text: str, pair: str | None = None) -> EncodedText:
        """A whole input and where in its text each of its tokens stands; with `pair` a text and a second one.

        Raises:
            InvalidField: as `encode`.
        """
        found = self._tokenizer.encode(text, pair, add_special_tokens=True)
        self._embedded(found.ids)
        spans = tuple(
            None if special else span
            for special, span in zip(found.special_tokens_mask, found.offsets, strict=True)
        )
        if pair is None:
            return EncodedText(tuple(found.ids), spans, tuple(found.word_ids))
        texts, types = tuple(found.sequence_ids), tuple(found.type_ids)
        return EncodedText(tuple(found.ids), spans, tuple(found.word_ids), texts, types)

    def _embedded(self, token_ids: list[int]) -> list[int]:
        """Tokenizers may have tokens that were added without an embedding."""
        if self._embeddings is not None and (beyond := [i for i in token_ids if i >= self._embeddings]):
            raise InvalidField.one(
                "text",
                f"has the token {self._tokenizer.id_to_token(beyond[0])!r} of id {beyond[0]}, and the base has embeddings of "
                f"0 to {self._embeddings - 1}; take it out of the text",
            )
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without control tokens. Bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of an id; None for those that `decode` leaves out."""
        if token_id in self._special_ids:
            return None
        return self._tokenizer.id_to_token(token_id)

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
        """The conversation in the base's chat template.

        Raises:
            InvalidField: the base has no template, or it refuses the messages.
        """
        if self._template is None:
            raise InvalidField.one(
                "messages",
                "need a chat template and the base has none; send the text as it stands (the input's content; "
                "RawText in the client, --raw on the command line)",
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_conversation(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt for the assistant's next turn.

        Raises:
            InvalidField: as `render`.
        """
        return self.encode(self.render(messages, add_generation_prompt=True))

    def closing_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """How many tokens at the end of `encode_conversation` are not the last message's words: what ends the message and
        begins the assistant's turn; 0 where the template changes the words.

        Raises:
            InvalidField: as `render`.
        """
        spoken = self.render(messages, add_generation_prompt=False)
        rendered = self.render(messages, add_generation_prompt=True)
        words = messages[-1].content.strip()
        place = spoken.rfind(words) if words and rendered.startswith(spoken) else -1
        return 0 if place < 0 else len(self.encode(rendered[place + len(words) :]))


def end_tokens(directory: Path) -> frozenset[int]:
    """All tokens that end a reply of a base; none where it has no tokenizer, or its files name none.

    Raises:
        InvalidField: a file is broken.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return frozenset()
    eos_token = _token_text(_read_json(directory / "tokenizer_config.json").get("eos_token"))
    return frozenset(_eos_token_ids(_open(path), eos_token, directory))


def _open(path: Path) -> Tokenizer:
    if not path.is_file():
        raise InvalidField.one("base", "has no tokenizer.json; convert the base with its tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InvalidField.one("base", f"has a tokenizer.json that cannot be read: {error}") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidField.one("base", f"has a {path.name} that is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidField.one("base", f"has a {path.name} that is not a JSON object")
    return value


def _token_text(value: Any) -> str | None:
    match value:
        case str(text) | {"content": str(text)}:
            return text
        case _:
            return None


def _template_source(directory: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the one in tokenizer_config.json, where "default" is meant of several."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    match config.get("chat_template"):
        case str(source):
            return source
        case [*entries]:
            named = {entry["name"]: entry["template"] for entry in entries if isinstance(entry, dict)}
            return named.get("default")
        case _:
            return None


def _eos_token_ids(tokenizer: Tokenizer, eos_token: str | None, directory: Path) -> list[int]:
    """All end tokens that any of the base's files names, the tokenizer's own first.

    A fine-tuned base often names its end of turn in one file and its end of text in another: each
    ends a reply.
    """
    found: list[int] = []
    if eos_token is not None and (token_id := tokenizer.token_to_id(eos_token)) is not None:
        found.append(token_id)
    for name in ("generation_config.json", "config.json"):
        found.extend(_integers(_read_json(directory / name).get("eos_token_id")))
    return [token_id for token_id in dict.fromkeys(found) if tokenizer.id_to_token(token_id) is not None]


def _integers(value: Any) -> Iterator[int]:
    values: list[Any] = value if isinstance(value, list) else [value]
    return (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
