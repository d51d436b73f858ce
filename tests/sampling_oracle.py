"""transformers' own warpers, and how often tokens come of evenly spread numbers."""

from __future__ import annotations

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def random_logits(seed, size=400, spread=4.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def oracle(logits, sampling):
    """Probabilities `[vocabulary]`."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.int64), logits[None])[0].softmax(-1)


def shares(draw, logits, sampling, draws=2000):
    """How often each token of `logits [vocabulary]` comes of evenly spread numbers; `draw` as `draws.draw_tokens`."""
    numbers = [(number + 0.5) / draws for number in range(draws)]
    tokens = draw(logits.expand(draws, -1), [sampling] * draws, numbers)
    return torch.tensor(tokens).bincount(minlength=logits.shape[0]) / draws


def assert_shares_of_transformers(draw, logits, sampling, draws=2000):
    """A token's numbers are an interval, of which an even spread misses at most one at each end."""
    expected = oracle(logits, sampling)
    actual = shares(draw, logits, sampling, draws)
    torch.testing.assert_close(actual, expected, atol=1.5 / draws, rtol=0.0)
    assert not bool(((actual > 0) & (expected == 0)).any()), "drawn, though it was not kept"
