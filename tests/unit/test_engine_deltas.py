"""Which tokens are told together, and that none is lost."""

from __future__ import annotations

import pytest
from finetuned_service.engine.deltas import Deltas, joined
from finetuned_service.engine.messages import FinishReason, Sampling, Submit, TokenLogprobs, Tokens
from finetuned_service.engine.sequence import Sequence

PROMPT = (1, 2)


def made(delta_tokens):
    sampling = Sampling(max_new_tokens=99, delta_tokens=delta_tokens)
    return Sequence(Submit(7, PROMPT, None, sampling), 99, 0.0, list(PROMPT))


def told(deltas, sequence, tokens, finish=None):
    """The ids of each event that is told while `tokens` are made one by one."""
    events = []
    for token_id in tokens:
        sequence.tokens.append(token_id)
        last = finish if token_id == tokens[-1] else None
        events += deltas.take(sequence, Tokens(7, (token_id,), finish=last))
    return [event.token_ids for event in events]


@pytest.mark.parametrize(
    ("delta_tokens", "expected"),
    [
        (1, [(10,), (11,), (12,), (13,), (14,), (15,)]),
        (2, [(10,), (11, 12), (13, 14), (15,)]),
        (5, [(10,), (11, 12, 13, 14, 15)]),
        (99, [(10,), (11, 12, 13, 14, 15)]),
    ],
)
def test_the_first_comes_at_once_and_the_last_has_what_is_left(delta_tokens, expected):
    assert told(Deltas(), made(delta_tokens), range(10, 16), FinishReason.LENGTH) == expected


def test_an_end_without_a_token_brings_those_that_waited():
    deltas, sequence = Deltas(), made(99)
    told(deltas, sequence, [10, 11, 12])
    end = Tokens(7, (), finish=FinishReason.END, decode_seconds=0.5)
    assert deltas.take(sequence, end) == [Tokens(7, (11, 12), finish=FinishReason.END, decode_seconds=0.5)]


def test_what_waits_of_a_sequence_that_fails_is_told_once():
    deltas, sequence = Deltas(), made(99)
    told(deltas, sequence, [10, 11, 12])
    assert [event.token_ids for event in deltas.rest(sequence)] == [(11, 12)]
    assert deltas.rest(sequence) == []


def test_joined_events_lose_nothing():
    some = TokenLogprobs(-0.5, (1,), (-0.5,))
    events = [
        Tokens(7, (1,), (some,), cached_tokens=16, prefill_seconds=0.25),
        Tokens(7, (2,), (some,)),
        Tokens(7, (), finish=FinishReason.END, decode_seconds=0.5),
    ]
    assert joined(events) == Tokens(
        7, (1, 2), (some, some), FinishReason.END, 16, prefill_seconds=0.25, decode_seconds=0.5
    )
