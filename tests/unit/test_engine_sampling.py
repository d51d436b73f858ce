"""Sampling against transformers' own warpers, and its independence of batch-mates."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.engine.draws import draw_tokens
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.sampling import greedy_tokens, make_generator, tokens_logprobs, uniform_number
from sampling_oracle import assert_shares_of_transformers, oracle, random_logits, shares


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 100, 1000])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.7, 0.999, 1.0])
def test_draws_are_from_the_distribution_of_transformers(temperature, top_k, top_p):
    sampling = Sampling(8, temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(3):
        assert_shares_of_transformers(draw_tokens, random_logits(seed), sampling)


@pytest.mark.parametrize("others", [{"top_p": 0.9}, {"top_k": 700}, {"top_k": 3000, "top_p": 0.8}, {}])
def test_what_is_kept_of_a_large_flat_vocabulary_is_exact(others):
    logits = random_logits(0, size=20_000, spread=0.5)
    sampling = Sampling(8, temperature=1.0, **others)
    kept = oracle(logits, sampling) > 0
    assert int(kept.sum()) > 64
    drawn = shares(draw_tokens, logits, sampling, draws=3000)
    assert not bool((drawn[~kept] > 0).any())
    # In sums of a hundred tokens each, the likeliest first: single ones are rarer than the draws.
    order = logits.argsort(descending=True)
    actual, expected = (shares[order].view(-1, 100).sum(-1) for shares in (drawn, oracle(logits, sampling)))
    torch.testing.assert_close(actual, expected, atol=0.01, rtol=0.0)


def test_a_number_falls_to_the_kept_token_of_its_share_in_the_order_of_ids():
    logits = torch.tensor([0.2, 0.1, 0.4, 0.3]).log()
    for others, expected in (
        ({}, [0, 0, 1, 2, 2, 3, 3]),
        ({"top_p": 0.6}, [2, 2, 2, 2, 3, 3, 3]),
        ({"top_k": 3}, [0, 0, 2, 2, 2, 3, 3]),
    ):
        numbers = [0.0, 0.19, 0.25, 0.42, 0.66, 0.75, 0.9999999999999999]
        sampling = Sampling(8, temperature=1.0, **others)
        assert draw_tokens(logits.expand(7, -1), [sampling] * 7, numbers) == expected


def test_all_that_tie_with_the_kth_stay():
    logits = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    drawn = shares(draw_tokens, logits, Sampling(8, temperature=1.0, top_k=2), draws=300)
    torch.testing.assert_close(drawn, torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]))
    many = torch.zeros(500)
    many[:3] = 5.0
    drawn = shares(draw_tokens, many, Sampling(8, temperature=1.0, top_k=10), draws=5000)
    assert int((drawn > 0).sum()) == 500  # the tie reaches beyond the candidates that are looked at first


@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 50}, {"top_k": 50, "top_p": 0.9}])
def test_what_is_forbidden_is_never_drawn(others):
    logits = torch.full((3000,), -torch.inf)
    logits[[7, 2999]] = torch.tensor([1.0, 0.0])
    sampling = Sampling(8, temperature=1.0, **others)
    numbers = [0.0, 0.5, 0.9999999999999999]
    assert draw_tokens(logits.expand(3, -1), [sampling] * 3, numbers) == [7, 7, 2999]


@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 3}])
def test_what_is_no_distribution_is_refused(others):
    good = Sampling(8, temperature=1.0, **others)
    bad = Sampling(8, temperature=float("nan"), **others)
    with pytest.raises(ValueError, match="no distribution"):
        draw_tokens(random_logits(1).expand(2, -1), [good, bad], [0.5, 0.5])


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = make_generator(Sampling(8, temperature=1.0, seed=3))
    numbers = [uniform_number(generator) for _ in range(4000)]
    drawn = draw_tokens(logits.expand(4000, -1), [Sampling(8, temperature=1.0)] * 4000, numbers)
    actual = torch.tensor(drawn).bincount(minlength=4) / 4000
    torch.testing.assert_close(actual, logits.softmax(-1), atol=0.025, rtol=0.0)


def test_a_row_is_drawn_alike_alone_and_beside_others():
    kinds = [{}, {"top_p": 0.9}, {"top_k": 40}, {"top_k": 200, "top_p": 0.5}, {"top_p": 0.9999}]
    samplings = [
        Sampling(8, temperature=temperature, **kind)
        for kind in kinds
        for temperature in (0.1, 0.8, 3.0, 30.0)
    ]
    logits = torch.stack([random_logits(seed, size=4099) for seed in range(len(samplings))])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(len(samplings), generator=generator, dtype=torch.float64).tolist()
        together = draw_tokens(logits, samplings, numbers)
        alone = [
            draw_tokens(logits[row : row + 1], [sampling], [numbers[row]])[0]
            for row, sampling in enumerate(samplings)
        ]
        assert together == alone


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 5}])
def test_the_smallest_temperatures_draw_the_most_likely_token(temperature, others):
    sampling = Sampling(8, temperature=temperature, **others)
    for seed in range(5):
        logits = random_logits(seed)
        generator = make_generator(sampling)
        assert draw_tokens(logits[None], [sampling], [uniform_number(generator)]) == [int(logits.argmax())]


def test_greedy_takes_the_first_of_equal_maxima():
    logits = torch.tensor([[0.0, 5.0, 5.0], [7.0, 7.0, 7.0], [0.0, 1.0, 2.0]])
    assert greedy_tokens(logits) == [1, 0, 2]
    assert make_generator(Sampling(8)) is None


def test_rows_that_are_not_finite_have_no_token():
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[0.0, 1.0], [nan, 1.0], [1.0, inf], [-inf, 1.0], [-inf, -inf]])
    assert greedy_tokens(logits) == [1, None, None, 1, None]


def test_logprobs_are_of_the_raw_logits():
    logits = torch.stack([random_logits(1), random_logits(2)]).bfloat16()
    expected = logits.double().log_softmax(-1)
    for row, actual in enumerate(tokens_logprobs(logits, [17, 3], 3)):
        assert actual.logprob == pytest.approx(float(expected[row, (17, 3)[row]]), abs=1e-5)
        assert actual.top_token_ids == tuple(expected[row].topk(3).indices.tolist())
        assert actual.top_logprobs == pytest.approx(expected[row].topk(3).values.tolist(), abs=1e-5)
