"""TextStream: the pieces joined are the decoded reply, however it is cut; stop strings never show."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_service.errors import InvalidField, Unimplemented
from finetuned_service.text.stop import StopMatcher
from finetuned_service.text.stream import TextStream
from finetuned_service.text.tokenizer import BaseTokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, write_byte_fallback, write_tokenizer
from tokenizers import Tokenizer, decoders

FAMILIES = ("byte_level", "byte_fallback", "metaspace", "no_decoder")


def load(family: str, directory: Path) -> BaseTokenizer:
    if family == "byte_level":
        return BaseTokenizer.load(write_tokenizer(directory))
    write_byte_fallback(directory)
    if family != "byte_fallback":
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.decoder = decoders.Metaspace() if family == "metaspace" else None  # pyright: ignore[reportAttributeAccessIssue]  # the stub forgets None
        tokenizer.save(str(directory / "tokenizer.json"))
    return BaseTokenizer.load(directory)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseTokenizer]:
    return {family: load(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def smollm2(smollm2_directory: Path) -> BaseTokenizer:
    return BaseTokenizer.load(smollm2_directory)


def pieces_of(stream: TextStream, token_ids: list[int], cuts: list[int]) -> list[str]:
    """Push in chunks of the sizes in `cuts`, again and again; the last piece is that of finish."""
    pieces: list[str] = []
    place = turn = 0
    while place < len(token_ids):
        size = cuts[turn % len(cuts)]
        pieces.append(stream.push(token_ids[place : place + size]).text)
        place, turn = place + size, turn + 1
    return [*pieces, stream.finish()]


CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("family", FAMILIES)
@given(token_ids=st.lists(st.integers(0, 470), max_size=60), cuts=CUTS)
def test_any_ids_give_the_decoded_text(
    tokenizers: dict[str, BaseTokenizer], family: str, token_ids: list[int], cuts: list[int]
) -> None:
    tokenizer = tokenizers[family]
    pieces = pieces_of(TextStream(tokenizer), token_ids, cuts)
    assert tokenizer.decode(token_ids) == "".join(pieces)


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
@given(text=st.text(alphabet=st.sampled_from("ab é日🎉👩\u200d\ufe0f"), max_size=30), cuts=CUTS)
def test_characters_of_several_ids_come_whole(
    tokenizers: dict[str, BaseTokenizer], family: str, text: str, cuts: list[int]
) -> None:
    tokenizer = tokenizers[family]
    pieces = pieces_of(TextStream(tokenizer), tokenizer.encode(text), cuts)
    assert text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


UNICODE = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    # What comes in several code points: families, skin tones, flags, accents that combine, Hangul, variants.
    st.sampled_from(["👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "e\u0301\u0323", "\u1112\u1161\u11ab", "☂\ufe0f", "漢\U000e0100", "\ufffd"]),
)  # fmt: skip


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "smollm2"])
@given(text=st.lists(UNICODE, max_size=20).map("".join), cuts=CUTS, left_out=st.integers(0, 3))
def test_any_text_comes_as_it_is_decoded_with_no_character_broken(
    tokenizers: dict[str, BaseTokenizer],
    smollm2: BaseTokenizer,
    family: str,
    text: str,
    cuts: list[int],
    left_out: int,
) -> None:
    """Also when the reply ends within a character."""
    tokenizer = smollm2 if family == "smollm2" else tokenizers[family]
    encoded = tokenizer.encode(text)
    token_ids = encoded[: max(0, len(encoded) - left_out)]
    *pieces, last = pieces_of(TextStream(tokenizer), token_ids, cuts)
    whole = tokenizer.decode(token_ids)
    assert whole == "".join([*pieces, last])
    if "\ufffd" not in tokenizer.decode(encoded):  # SmolLM2 lacks tokens for the bytes of rare planes
        # Before the end nothing is told that more tokens could have made a character of.
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_certain(tokenizers: dict[str, BaseTokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer)
    token_ids = tokenizer.encode("a") + tokenizer.encode("☂") + tokenizer.encode("b")
    assert [stream.push([token_id]).text for token_id in token_ids] == ["a", "", "", "☂", "b"]


def test_work_per_id_does_not_grow_with_the_reply(tokenizers: dict[str, BaseTokenizer]) -> None:
    """Counted, not timed: how many ids the tokenizer is asked to decode for each one pushed."""
    decoded: list[int] = []

    class Counting(BaseTokenizer):
        def decode(self, token_ids) -> str:
            decoded.append(len(token_ids))
            return super().decode(token_ids)

    tokenizer = tokenizers["byte_fallback"]
    counting = Counting(tokenizer._tokenizer, None, eos_token_id=2, eos_token_ids=frozenset({2}))
    stream = TextStream(counting)
    byte_run = tokenizer.encode("🎉" * 500)
    token_ids = tokenizer.encode("please deploy version v0.8.1 ") * 100 + byte_run
    for token_id in token_ids:
        stream.push([token_id])
    stream.finish()
    assert sum(decoded) <= 4 * len(token_ids)


@given(
    words=st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "🎉", " "]), max_size=30),
    stops=st.lists(st.text(alphabet="ab🎉", min_size=1, max_size=5), max_size=4),
    cuts=CUTS,
)
def test_stop_strings_end_the_text_however_it_is_cut(
    tokenizers: dict[str, BaseTokenizer], words: list[str], stops: list[str], cuts: list[int]
) -> None:
    tokenizer = tokenizers["byte_level"]
    text = "".join(words)
    stream = TextStream(tokenizer, stops)
    given_out = "".join(pieces_of(stream, tokenizer.encode(text), cuts))
    expected, stopped = first_stop(text, stops)
    assert (expected, stopped) == (given_out, stream.stopped)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the shortest beginning of the text that ends with a stop string, without it."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_stop_string_over_several_ids_is_held_back(tokenizers: dict[str, BaseTokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer, ["\n\nUser:"])
    pieces = [
        stream.push(tokenizer.encode(part)) for part in ("fine", "\n", "\nU", "ser", "!", "\n\nUser: no")
    ]
    assert [piece.text for piece in pieces] == ["fine", "", "", "", "\n\nUser!", ""]
    assert [piece.stopped for piece in pieces] == [None, None, None, None, None, "\n\nUser:"]
    assert stream.push(tokenizer.encode("more")).text == ""
    assert stream.push(tokenizer.encode("more")).stopped == "\n\nUser:"
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_string_is_given_out_at_the_end(tokenizers: dict[str, BaseTokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer, ["###"])
    assert stream.push(tokenizer.encode("a ##")).text == "a "
    assert stream.finish() == "##"
    assert stream.stopped is None


def test_finish_can_complete_a_stop_string(tokenizers: dict[str, BaseTokenizer]) -> None:
    tokenizer = tokenizers["byte_fallback"]
    stream = TextStream(tokenizer, ["🎉"])
    assert "".join(pieces_of(stream, tokenizer.encode("go 🎉"), [1])) == "go "
    assert stream.stopped == "🎉"


def test_control_tokens_are_not_text(tokenizers: dict[str, BaseTokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer, ["<|im_end|>"])
    assert stream.push([*tokenizer.encode("a"), 2, *tokenizer.encode("b")]).text == "ab"
    assert stream.finish() == ""


def test_real_packaged_base_streams_emoji(smollm2_directory: Path) -> None:
    tokenizer = BaseTokenizer.load(smollm2_directory)
    text = "Fin 👩‍👩‍👧‍👦 日本語 ½ — \u00a0ok"
    pieces = pieces_of(TextStream(tokenizer), tokenizer.encode(text), [1])
    assert text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidField, match="empty string"):
        StopMatcher(["a", ""])


@pytest.mark.parametrize(
    "decoder", [decoders.WordPiece(), decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)])]
)
def test_decoders_that_cannot_be_followed_are_refused(tmp_path: Path, decoder: decoders.Decoder) -> None:
    tokenizer = byte_level()
    tokenizer.decoder = decoder
    loaded = BaseTokenizer.load(write_tokenizer(tmp_path, tokenizer))
    with pytest.raises(Unimplemented, match="streaming with the tokenizer decoder"):
        TextStream(loaded)
