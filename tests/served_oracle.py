"""Greedy replies of a real server beside those of a model that applies the adapter alone."""

from __future__ import annotations

import math

import torch
from finetuned import Client, RawText, Reply
from tiny_models import oracle_logits, oracle_tokens

NEW_TOKENS = 12
PROMPT = RawText("what's the weather like in Paris today?")


def ask(client: Client, adapter: str | None) -> Reply:
    return client.generate(
        PROMPT,
        adapter=adapter,
        plain_base=adapter is None,
        max_tokens=NEW_TOKENS,
        ignore_eos=True,
        logprobs=3,
    )


def check_against_oracle(reply: Reply, model: object, prompt: list[int]) -> None:
    """Greedy tokens equal, and log-probabilities within float32 rounding."""
    assert list(reply.token_ids) == oracle_tokens(model, prompt, NEW_TOKENS)
    logits = oracle_logits(model, [*prompt, *reply.token_ids])
    expected = torch.log_softmax(logits, dim=-1)
    for place, (token, told) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
        row = expected[len(prompt) - 1 + place]
        assert math.isclose(told.logprob, float(row[token]), abs_tol=2e-4)
        assert told.top_token_ids == tuple(row.topk(3).indices.tolist())
