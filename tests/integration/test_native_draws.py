"""Draws of the native path against transformers' warpers and PyTorch's draws, in every build."""

from __future__ import annotations

import ctypes

import pytest
import torch
from finetuned_service.engine.draws import NONE, draw_tokens
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.native.library import DrawStruct
from sampling_oracle import assert_shares_of_transformers, oracle, random_logits, shares


@pytest.fixture
def draw(library):
    """As `draws.draw_tokens`, on two threads."""
    decoders = {}

    def drawn(logits, samplings, uniforms):
        vocabulary = logits.shape[1]
        if vocabulary not in decoders:
            decoders[vocabulary] = library.decoder_new(2)
        rows = logits.contiguous()
        draws = [
            DrawStruct(rows[place].data_ptr(), one.top_p, uniform, max(one.temperature, 1e-6), one.top_k)
            for place, (one, uniform) in enumerate(zip(samplings, uniforms, strict=True))
        ]
        tokens = (ctypes.c_int32 * len(draws))()
        array = (DrawStruct * len(draws))(*draws)
        assert library.decoder_draw(decoders[vocabulary], array, len(draws), vocabulary, tokens) == 0
        return list(tokens)

    yield drawn
    for decoder in decoders.values():
        library.decoder_free(decoder)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 100, 1000])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.7, 0.999, 1.0])
def test_draws_are_from_the_distribution_of_transformers(draw, temperature, top_k, top_p):
    sampling = Sampling(8, temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(3):
        assert_shares_of_transformers(draw, random_logits(seed), sampling)


@pytest.mark.parametrize("others", [{"top_p": 0.9}, {"top_k": 700}, {"top_k": 3000, "top_p": 0.8}, {}])
def test_what_is_kept_of_a_large_flat_vocabulary_is_exact(draw, others):
    logits = random_logits(0, size=20_000, spread=0.5)
    sampling = Sampling(8, temperature=1.0, **others)
    kept = oracle(logits, sampling) > 0
    drawn = shares(draw, logits, sampling, draws=3000)
    assert not bool((drawn[~kept] > 0).any())
    order = logits.argsort(descending=True)
    actual, expected = (part[order].view(-1, 100).sum(-1) for part in (drawn, oracle(logits, sampling)))
    torch.testing.assert_close(actual, expected, atol=0.01, rtol=0.0)


@pytest.mark.parametrize("size", [5, 16, 255, 256, 257, 4099])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_the_same_numbers_draw_the_same_tokens_as_in_pytorch(draw, size, spread):
    """But where one falls on the border of two shares."""
    kinds = [{}, {"top_p": 0.9}, {"top_k": 3}, {"top_k": 40, "top_p": 0.5}, {"top_p": 0.999}]
    samplings = [
        Sampling(8, temperature=temperature, **kind) for kind in kinds for temperature in (1e-30, 0.8, 30.0)
    ] * 20
    logits = torch.stack([random_logits(seed, size=size, spread=spread) for seed in range(len(samplings))])
    logits[1, : size // 2] = -torch.inf
    numbers = torch.rand(len(samplings), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = draw(logits, samplings, numbers.tolist())
    expected = draw_tokens(logits, samplings, numbers.tolist())
    assert sum(a != b for a, b in zip(actual, expected, strict=True)) <= 1
    alone = [
        draw(logits[i : i + 1], samplings[i : i + 1], [float(numbers[i])])[0] for i in range(len(actual))
    ]
    assert actual == alone


@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 3}])
def test_what_is_no_distribution_is_told(draw, others):
    samplings = [Sampling(8, temperature=temperature, **others) for temperature in (1.0, float("nan"))]
    good, bad = draw(random_logits(1).expand(2, -1), samplings, [0.5, 0.5])
    assert good >= 0
    assert bad == NONE


def test_all_that_tie_with_the_kth_stay(draw):
    logits = torch.zeros(500)
    logits[:3] = 5.0
    drawn = shares(draw, logits, Sampling(8, temperature=1.0, top_k=10), draws=5000)
    assert int((drawn > 0).sum()) == 500


@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 50}, {"top_k": 50, "top_p": 0.9}])
def test_what_is_forbidden_is_never_drawn(draw, others):
    logits = torch.full((3000,), -torch.inf)
    logits[[7, 2999]] = torch.tensor([1.0, 0.0])
    sampling = Sampling(8, temperature=1.0, **others)
    assert draw(logits.expand(3, -1), [sampling] * 3, [0.0, 0.5, 0.9999999999999999]) == [7, 7, 2999]
