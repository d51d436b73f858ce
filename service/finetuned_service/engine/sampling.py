"""How the next token is chosen from logits, row by row and independent of batch-mates.

Greedy rows are decided together. A sampled row has a generator of its own, seeded by its request:
temperature, then top-k, then top-p, as transformers' warpers do it
(https://arxiv.org/abs/1904.09751 for top-p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetuned_service.engine.messages import Sampling, TokenLogprobs

LEAST_DIVISOR = 1e-6
"""Of logits. A temperature below draws the most likely token all the same, and what logits are divided by must not make
them infinite."""
_NUCLEUS_CANDIDATES = 1024
"""top-p first looks here: sorting a whole vocabulary costs milliseconds, and rarely is more needed."""


def make_generator(sampling: Sampling) -> torch.Generator | None:
    """The generator of a request's draws, None for greedy. On the CPU whatever computes the logits: a seed draws alike."""
    if sampling.temperature == 0.0:
        return None
    return torch.Generator().manual_seed(sampling.seed)


def greedy_tokens(logits: Tensor) -> list[int | None]:
    """For each row of `logits [rows, vocabulary]` the first of its highest; None if it is not finite."""
    highest, ids = logits.max(dim=-1)
    # One list: on a GPU each is a wait.
    told: list[int] = ids.masked_fill(~torch.isfinite(highest), -1).tolist()
    return [None if token_id < 0 else token_id for token_id in told]


def draw_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token for one row of `logits [vocabulary]` at a temperature above 0."""
    probabilities, ids = filtered_probabilities(logits, sampling)
    # What is no distribution is an exception on a CPU; a GPU's assertion would end the process with all its streams.
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return int(ids[drawn])


def token_logprobs(logits: Tensor, token_id: int, top: int) -> TokenLogprobs:
    """Log-probabilities of one row of `logits [vocabulary]`: of its token, and of the `top` most likely."""
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(top, logprobs.shape[0]))
    return TokenLogprobs(float(logprobs[token_id]), tuple(ids.tolist()), tuple(values.tolist()))


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What a row is drawn from: probabilities `[n]`, descending, and their token ids `[n]`.

    Args:
        logits: `[vocabulary]`.
        sampling: with a temperature above 0.
    """
    scores = logits.float() / max(sampling.temperature, LEAST_DIVISOR)
    if sampling.top_k:
        # All that tie with the k-th stay, as in transformers' TopKLogitsWarper.
        kth = scores.topk(min(sampling.top_k, scores.shape[0])).values[-1]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    probabilities = scores.softmax(dim=-1)
    if sampling.top_p >= 1.0:
        return probabilities, torch.arange(probabilities.shape[0], device=logits.device)
    values, ids = probabilities.topk(min(_NUCLEUS_CANDIDATES, probabilities.shape[0]))
    if float(values.sum()) < sampling.top_p:
        values, ids = probabilities.sort(descending=True, stable=True)
    # A token stays while those before it have less than top_p in sum; the first always stays.
    kept = values.cumsum(dim=-1) - values < sampling.top_p
    kept[0] = True
    values, ids = values[kept], ids[kept]
    return values / values.sum(), ids
