"""How the next token is chosen from logits, row by row and independent of batch-mates.

Greedy rows are decided together, drawn ones too (`draws.py`): each of those has a generator of its own, seeded by its
request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetuned_service.engine.messages import Sampling, TokenLogprobs


def make_generator(sampling: Sampling) -> torch.Generator | None:
    """The generator of a request's draws, None for greedy. On the CPU whatever computes the logits: a seed draws alike."""
    if sampling.temperature == 0.0:
        return None
    return torch.Generator().manual_seed(sampling.seed)


def uniform_number(generator: torch.Generator) -> float:
    """Of `[0, 1)`."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def greedy_tokens(logits: Tensor) -> list[int | None]:
    """For each row of `logits [rows, vocabulary]` the first of its highest; None if it is not finite."""
    highest, ids = logits.max(dim=-1)
    # One list: on a GPU each is a wait.
    told: list[int] = ids.masked_fill(~torch.isfinite(highest), -1).tolist()
    return [None if token_id < 0 else token_id for token_id in told]


def tokens_logprobs(logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Log-probabilities for each row of `logits [rows, vocabulary]`: of its token, and of the `top` most likely."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0]
    values, ids = logprobs.topk(min(top, logprobs.shape[1]))
    return [
        TokenLogprobs(logprob, tuple(top_ids), tuple(top_logprobs))
        for logprob, top_ids, top_logprobs in zip(own.tolist(), ids.tolist(), values.tolist(), strict=True)
    ]
