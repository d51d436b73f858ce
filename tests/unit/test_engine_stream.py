"""What a reader of one request's events sees, slow or gone."""

from __future__ import annotations

import pytest
from finetuned_service.engine.messages import Failed, FinishReason, Started, TokenLogprobs, Tokens
from finetuned_service.engine.stream import EngineStream
from finetuned_service.errors import Unavailable

STARTED = Started(7, 0, 0.0, 0.0)


def made(*events):
    left = []
    stream = EngineStream(7, left.append)
    for event in events:
        stream.feed(event)
    return stream, left


async def test_what_came_while_the_reader_was_busy_is_one_event():
    some = TokenLogprobs(-0.5, (1,), (-0.5,))
    first = Tokens(7, (1,), (some,), cached_tokens=16, prefill_seconds=0.25)
    last = Tokens(7, (), finish=FinishReason.END, decode_seconds=0.5)
    stream, left = made(STARTED, first, Tokens(7, (2,), (some,)), last)
    assert [event async for event in stream] == [
        STARTED,
        Tokens(7, (1, 2), (some, some), FinishReason.END, 16, prefill_seconds=0.25, decode_seconds=0.5),
    ]
    await stream.aclose()
    assert left == []


async def test_a_reader_that_keeps_up_gets_each_token_at_once():
    stream, _ = made()
    for token in (5, 6):
        stream.feed(Tokens(7, (token,)))
        assert await anext(stream) == Tokens(7, (token,))


async def test_a_failure_comes_after_the_tokens_before_it():
    stream, left = made(Tokens(7, (1,)), Tokens(7, (2,)), Failed(7, Unavailable("gone").to_wire()))
    assert await anext(stream) == Tokens(7, (1, 2))
    with pytest.raises(Unavailable, match="gone"):
        await anext(stream)
    await stream.aclose()
    assert left == []


async def test_leaving_after_a_merged_event_still_cancels():
    stream, left = made(Tokens(7, (1,)), Tokens(7, (2,)))
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert left == [7]
