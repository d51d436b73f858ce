"""Sampling against transformers' own warpers, and its independence of batch-mates."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.sampling import (
    draw_token,
    filtered_probabilities,
    greedy_tokens,
    make_generator,
    token_logprobs,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def random_logits(seed, size=400, spread=4.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def oracle(logits, sampling):
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.int64), logits[None])[0].softmax(-1)


def spread_out(probabilities, ids, size):
    return torch.zeros(size).index_add_(0, ids, probabilities)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.7, 0.999, 1.0])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p):
    sampling = Sampling(8, temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(5):
        logits = random_logits(seed)
        actual = spread_out(*filtered_probabilities(logits, sampling), 400)
        torch.testing.assert_close(actual, oracle(logits, sampling), atol=1e-6, rtol=1e-5)


def test_a_wide_nucleus_of_a_large_vocabulary_is_exact():
    logits = random_logits(0, size=20_000, spread=0.5)
    sampling = Sampling(8, temperature=1.0, top_p=0.9)
    probabilities, ids = filtered_probabilities(logits, sampling)
    assert probabilities.shape[0] > 1024
    actual = spread_out(probabilities, ids, 20_000)
    torch.testing.assert_close(actual, oracle(logits, sampling), atol=1e-7, rtol=1e-3)


def test_all_that_tie_with_the_kth_stay():
    logits = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    probabilities, ids = filtered_probabilities(logits, Sampling(8, temperature=1.0, top_k=2))
    actual = spread_out(probabilities, ids, 5)
    torch.testing.assert_close(actual, torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]))


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = Sampling(8, temperature=1.0, seed=3)
    generator = make_generator(sampling)
    drawn = torch.tensor([draw_token(logits, sampling, generator) for _ in range(4000)])
    actual = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(actual, logits.softmax(-1), atol=0.025, rtol=0.0)


def test_a_seed_gives_its_tokens_whatever_else_is_drawn():
    sampling = Sampling(8, temperature=1.0, top_p=0.9, seed=11)
    rows = [random_logits(seed) for seed in range(6)]
    alone = make_generator(sampling)
    expected = [draw_token(row, sampling, alone) for row in rows]
    beside = make_generator(sampling)
    other = make_generator(Sampling(8, temperature=1.0, seed=12))
    actual = []
    for row in rows:
        draw_token(row, sampling, other)
        actual.append(draw_token(row, sampling, beside))
    assert actual == expected


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 5}])
def test_the_smallest_temperatures_draw_the_most_likely_token(temperature, others):
    sampling = Sampling(8, temperature=temperature, **others)
    for seed in range(5):
        logits = random_logits(seed)
        generator = make_generator(sampling)
        assert draw_token(logits, sampling, generator) == int(logits.argmax())


def test_greedy_takes_the_first_of_equal_maxima():
    logits = torch.tensor([[0.0, 5.0, 5.0], [7.0, 7.0, 7.0], [0.0, 1.0, 2.0]])
    assert greedy_tokens(logits) == [1, 0, 2]
    assert make_generator(Sampling(8)) is None


def test_rows_that_are_not_finite_have_no_token():
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[0.0, 1.0], [nan, 1.0], [1.0, inf], [-inf, 1.0], [-inf, -inf]])
    assert greedy_tokens(logits) == [1, None, None, 1, None]


def test_logprobs_are_of_the_raw_logits():
    logits = random_logits(1).bfloat16()
    expected = logits.double().log_softmax(-1)
    actual = token_logprobs(logits, 17, 3)
    assert actual.logprob == pytest.approx(float(expected[17]), abs=1e-5)
    assert actual.top_token_ids == tuple(expected.topk(3).indices.tolist())
    assert actual.top_logprobs == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
