"""Whatever happens around a request, its reply is the one that it would get alone: random stories, the real loop,
a tiny model in float32 on the plain path, and PEFT, one request at a time, as the oracle.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_stories import stories, tell
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    load_peft,
    oracle_logits,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
)

NEW_TOKENS = 10
TIE = 1e-3
"""Two logits of the oracle nearer than this are a tie: float32 sums in another order may decide it otherwise.
(Logits agree within 2e-4, as `test_engine_oracle` shows.)"""
RANK_BYTES = 2 * (48 * 6 + 48 + 16 + 16 + 48 + 48 + 80 * 3) * 4
"""Of one rank at all sites."""
SHAPES = (
    {"rank": 4},
    {"rank": 8, "target_modules": ("q_proj", "v_proj")},
    {"rank": 16, "alpha": 16.0},
    {"rank": 64, "alpha": 32.0, "use_rslora": True, "spread": 0.1},
    {"rank": 8, "target_modules": ("gate_proj", "up_proj", "down_proj")},
    {"rank": 4, "rank_pattern": {"q_proj": 16, "layers.1.mlp.up_proj": 8}},
    {"rank": 64, "target_modules": ("o_proj",), "spread": 0.1},
)
PROMPTS = [random_prompt(100 + i, tokens) for i, tokens in enumerate((1, 3, 8, 17, 33, 60))]
PROMPTS += [PROMPTS[-1][:40], (*PROMPTS[-1], *random_prompt(99, 9))]
"""Some begin like others."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    return EngineModel.load(base)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [save_tiny_adapter(root / str(i), base, seed=i, **shape) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def oracle(base, adapters):
    """PEFT's greedy reply to a prompt, computed alone and once, and at each token how far the second best was."""
    models = {None: load_peft(base, None)} | {
        i: load_peft(base, adapter) for i, adapter in enumerate(adapters)
    }
    known = {}

    def reply(adapter, prompt):
        if (adapter, prompt) not in known:
            tokens = oracle_tokens(models[adapter], PROMPTS[prompt], NEW_TOKENS)
            logits = oracle_logits(models[adapter], [*PROMPTS[prompt], *tokens])
            best, second = logits[len(PROMPTS[prompt]) - 1 : -1].topk(2).values.unbind(-1)
            known[adapter, prompt] = tokens, (best - second).tolist()
        return known[adapter, prompt]

    return reply


def same_but_for_ties(found, expected, margins):
    """Equal up to the first token at which the oracle hardly preferred its own; what follows a tie is open."""
    for ours, theirs, margin in zip(found, expected, margins, strict=False):
        if ours != theirs:
            return margin < TIE
    return True


@pytest.mark.parametrize("room_ranks", [72, 150, 1000])
@settings(max_examples=60)
@given(
    story=stories(len(SHAPES), len(PROMPTS), NEW_TOKENS),
    max_running=st.integers(1, 8),
    max_prefill_tokens=st.sampled_from([1, 7, 64, 512]),
    kv_capacity_tokens=st.sampled_from([90, 200, 2000]),
)
def test_replies_are_pefts_whatever_happens_around_them(
    model, adapters, oracle, room_ranks, story, max_running, max_prefill_tokens, kv_capacity_tokens
):
    config = EngineConfig(
        base_directory="",
        max_running_sequences=max_running,
        max_prefill_tokens=max_prefill_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        device_budget_bytes=room_ranks * RANK_BYTES,
        host_budget_bytes=2 * room_ranks * RANK_BYTES,
    )
    if room_ranks == 72:  # of which a pinned adapter would leave too few for the largest
        story = [dataclasses.replace(e, pinned=False) if getattr(e, "pinned", False) else e for e in story]
    with OfflineEngine(model, config) as engine:
        told = tell(engine, story, adapters, PROMPTS)
    for one in told:
        expected, margins = oracle(one.adapter, one.ask.prompt)
        assert one.error is None
        assert one.left or len(one.token_ids) == one.ask.new_tokens
        assert same_but_for_ties(one.token_ids, expected, margins)


def test_the_oracle_tells_its_adapters_apart_and_hardly_ever_ties(oracle):
    """Else the stories would prove little. (One that adapts attention alone may change nothing in ten tokens.)"""
    for prompt in range(len(PROMPTS)):
        replies = {tuple(oracle(adapter, prompt)[0]) for adapter in (None, *range(len(SHAPES)))}
        assert len(replies) >= len(SHAPES)
    margins = torch.tensor([oracle(None, prompt)[1] for prompt in range(len(PROMPTS))])
    assert (margins < TIE).float().mean() < 0.05
