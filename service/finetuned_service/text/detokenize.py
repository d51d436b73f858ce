"""Ids to text while they arrive: the pieces joined are exactly `BaseTokenizer.decode` of all ids.

A text is given out only when no later id can change it, so a character split over several ids
never appears as U+FFFD first. Each id is looked at a fixed number of times, however long the
reply. (tokenizers' DecodeStream decodes its whole buffer at each step, and fails on replies whose
bytes are no UTF-8.)
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final

from finetuned_service.errors import Unimplemented
from finetuned_service.text.tokenizer import BaseTokenizer


class Detokenizer(Protocol):
    """Incremental decoding of one reply."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is settled now and was not before."""
        ...

    def finish(self) -> str:
        """What was held back; incomplete bytes as U+FFFD."""
        ...


def detokenizer(tokenizer: BaseTokenizer) -> Detokenizer:
    """The way that suits the tokenizer's decoder.

    Raises:
        Unimplemented: its text cannot be told piece by piece in a known way.
    """
    steps = _steps(tokenizer.decoder)
    kinds = [str(step.get("type")) for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelDetokenizer(tokenizer)
    strips = [step for step in steps if step.get("type") == "Strip"]
    local = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}.issuperset(kinds)
    if local and all(strip.get("start", 0) <= 1 and strip.get("stop", 0) == 0 for strip in strips):
        return WindowDetokenizer(tokenizer, byte_fallback="ByteFallback" in kinds)
    raise Unimplemented.feature(
        f"streaming with the tokenizer decoder {' + '.join(kinds)}",
        "ByteLevel, Metaspace, and Replace + ByteFallback + Fuse + Strip of one leading space",
    )


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _byte_of_character() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable Latin-1 as itself, the others from U+0100 upwards.

    The alphabet of GPT-2's tokenizer (Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


_BYTES = _byte_of_character()


@final
class ByteLevelDetokenizer:
    """For byte-level BPE: ids are bytes, and an incremental UTF-8 decoder does the rest."""

    def __init__(self, tokenizer: BaseTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        return self._utf8.decode(b"".join(self._bytes(token_id) for token_id in token_ids))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.token(token_id)
        if token is None:
            return b""
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # an added token, spelled as it reads
            return token.encode()


_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


@final
class WindowDetokenizer:
    """For decoders that look at most one id back: decode one settled id and the new ones, cut off the old.

    A run of byte-fallback ids (`<0xF0>`) is decoded as a whole by the tokenizer, all or nothing, so it
    is settled by the first id after it.
    """

    def __init__(self, tokenizer: BaseTokenizer, *, byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_fallback = byte_fallback
        self._settled: list[int] = []
        """The last id given out, or none."""
        self._waiting: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        settled = 0
        for token_id in token_ids:
            token = self._tokenizer.token(token_id)
            if token is None:
                continue
            self._waiting.append(token_id)
            if not (self._byte_fallback and _BYTE_TOKEN.fullmatch(token)):
                settled = len(self._waiting)
        return self._give_out(settled)

    def finish(self) -> str:
        return self._give_out(len(self._waiting))

    def _give_out(self, count: int) -> str:
        if count == 0:
            return ""
        window = self._settled + self._waiting[:count]
        text = self._tokenizer.decode(window)[len(self._tokenizer.decode(self._settled)) :]
        self._settled = window[-1:]
        del self._waiting[:count]
        return text
