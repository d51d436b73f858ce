"""Penalties, bias and the shortest reply against transformers' processors and OpenAI's definition."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.engine.adjustments import Adjustments
from finetuned_service.engine.choice import TokenChoice
from finetuned_service.engine.draws import draw_tokens
from finetuned_service.engine.messages import Sampling, Submit
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

CPU = torch.device("cpu")
VOCABULARY = 50
ENDS = frozenset({0, 2})
PROMPT = (3, 7, 7, 11, 49)


def random_logits(seed):
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def walk(sampling, steps=12):
    """The logits of some steps, as they are and as the request adjusts them, with the reply before each."""
    adjustments = Adjustments(Submit(1, PROMPT, None, sampling), ENDS, CPU)
    reply = []
    for step in range(steps):
        logits = random_logits(step)
        scores = logits.clone()
        adjustments.apply(scores)
        yield logits, scores, list(reply)
        reply.append((5, 7, 11, 5, 20)[step % 5])
        adjustments.took(reply[-1])


def of_openai(logits, reply, frequency, presence):
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, in float64."""
    counts = torch.bincount(torch.tensor(reply, dtype=torch.int64), minlength=VOCABULARY).double()
    return logits.double() - counts * frequency - (counts > 0).double() * presence


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    oracle = RepetitionPenaltyLogitsProcessor(penalty)
    for logits, scores, reply in walk(Sampling(20, repetition_penalty=penalty)):
        seen = torch.tensor([[*PROMPT, *reply]])
        torch.testing.assert_close(scores, oracle(seen, logits[None].clone())[0], atol=0, rtol=0)


def test_the_smallest_repetition_penalty_leaves_a_distribution():
    sampling = Sampling(20, temperature=1.0, repetition_penalty=1e-45, seed=3)
    for _, scores, _ in walk(sampling):
        assert bool(torch.isfinite(scores).all())
        [token_id] = draw_tokens(scores[None], [sampling], [0.5])
        assert token_id in range(VOCABULARY)


@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, 1.5), (-2.0, 2.0), (0.25, -0.5)])
def test_frequency_and_presence_penalties_are_those_of_openai(frequency, presence):
    sampling = Sampling(20, frequency_penalty=frequency, presence_penalty=presence)
    for logits, scores, reply in walk(sampling):
        expected = of_openai(logits, reply, frequency, presence)
        torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_bias_and_shortest_reply_are_those_of_transformers():
    bias = {4: -100.0, 7: 2.5, 49: 100.0}
    sampling = Sampling(20, logit_bias=tuple(bias.items()), min_new_tokens=5)
    oracle = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token_id,): value for token_id, value in bias.items()}),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, sorted(ENDS), device="cpu"),
        ]
    )
    for logits, scores, reply in walk(sampling):
        expected = oracle(torch.tensor([[*PROMPT, *reply]]), logits[None].clone())[0]
        torch.testing.assert_close(scores, expected, atol=0, rtol=0)


def test_all_together_in_the_order_that_is_told():
    sampling = Sampling(
        20, logit_bias=((5, 3.0),), repetition_penalty=1.7, frequency_penalty=0.5, presence_penalty=0.25
    )
    repetition = RepetitionPenaltyLogitsProcessor(1.7)
    for logits, scores, reply in walk(sampling):
        biased = logits.clone()
        biased[5] += 3.0
        repeated = repetition(torch.tensor([[*PROMPT, *reply]]), biased[None])[0]
        expected = of_openai(repeated, reply, 0.5, 0.25)
        torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_before_the_shortest_reply_no_stop_token_comes_either():
    for _, scores, reply in walk(Sampling(20, min_new_tokens=3, stop_token_ids=(9, 10_000))):
        forbidden = torch.isinf(scores).nonzero().flatten().tolist()
        assert forbidden == ([0, 2, 9] if len(reply) < 3 else [])
    ignoring = Sampling(20, min_new_tokens=3, stop_token_ids=(9,), ignore_eos=True)
    for _, scores, reply in walk(ignoring):
        assert torch.isinf(scores).nonzero().flatten().tolist() == ([9] if len(reply) < 3 else [])


def test_what_is_plain_needs_no_adjustments():
    assert not Adjustments.wanted(Sampling(8, temperature=1.0, top_k=3, stop_token_ids=(4,), logprobs=2))
    for sampling in (
        Sampling(8, min_new_tokens=1),
        Sampling(8, repetition_penalty=1.1),
        Sampling(8, presence_penalty=0.1),
        Sampling(8, frequency_penalty=0.1),
        Sampling(8, logit_bias=((1, 1.0),)),
    ):
        assert Adjustments.wanted(sampling)


def test_the_logits_themselves_stay_as_they_are():
    choice = TokenChoice(Submit(1, PROMPT, None, Sampling(8, logit_bias=((4, 100.0),))), ENDS, CPU)
    logits = random_logits(1)
    before = logits.clone()
    assert int(choice.scores(logits).argmax()) == 4
    torch.testing.assert_close(logits, before, atol=0, rtol=0)
