"""On the native path a reply is the same to the last bit, whatever happens around it: the stories of
`test_engine_stories`, with chunks, shared beginnings and a cache of them, against the engine cold and alone.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_stories import stories, tell
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.native.library import PANEL
from finetuned_service.engine.offline import OfflineEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import load_peft, oracle_logits, random_prompt, save_tiny_adapter, save_tiny_base

NEW_TOKENS = 8
LOGPROBS = 2
TOLERANCE = 0.03
"""Of the spread of PEFT's logits in float32: the most that any of ours, in bfloat16, is away from it."""
SHAPES = (
    {"rank": 4},
    {"rank": 16, "alpha": 16.0},
    {"rank": 64, "use_rslora": True, "target_modules": ("down_proj", "o_proj")},
    {"rank": 8, "target_modules": ("q_proj", "v_proj")},
)
SHARED = random_prompt(1, 3 * PANEL)
PROMPTS = [
    random_prompt(2, 1),
    random_prompt(3, PANEL),
    SHARED,
    SHARED[:-1],
    (*SHARED, *random_prompt(4, 5)),
    (*SHARED, *random_prompt(5, PANEL + 1)),
    (*SHARED[:PANEL], *random_prompt(6, 2 * PANEL)),
]
COLD = EngineConfig(
    base_directory="",
    max_running_sequences=8,
    max_prefill_tokens=512,
    kv_capacity_tokens=2048,
    device_budget_bytes=4 * 1024 * 1024,
    host_budget_bytes=8 * 1024 * 1024,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
    return save_tiny_base(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16, head_dim=16, **sizes)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [
        save_tiny_adapter(root / str(i), base, seed=i, spread=0.1, **shape) for i, shape in enumerate(SHAPES)
    ]


@pytest.fixture(scope="module")
def cold(model, adapters):
    """A reply of an engine that has never seen anything else, with its log-probabilities."""
    known = {}

    def reply(adapter, prompt):
        if (adapter, prompt) not in known:
            handle = None if adapter is None else adapters[adapter].handle
            sampling = Sampling(NEW_TOKENS, ignore_eos=True, logprobs=LOGPROBS)
            with OfflineEngine(model, COLD) as engine:
                (completion,) = engine.generate([Submit(1, PROMPTS[prompt], handle, sampling)])
            known[adapter, prompt] = completion.token_ids, completion.logprobs
        return known[adapter, prompt]

    return reply


@settings(max_examples=150)
@given(
    story=stories(len(SHAPES), len(PROMPTS), NEW_TOKENS),
    max_running=st.integers(1, 8),
    max_prefill_tokens=st.sampled_from([1, 7, PANEL + 1, 512]),
    kv_capacity_tokens=st.sampled_from([6 * PANEL, 16 * PANEL, 2048]),
    small=st.booleans(),
)
def test_replies_are_those_of_a_cold_engine_bit_for_bit(
    model, adapters, cold, story, max_running, max_prefill_tokens, kv_capacity_tokens, small
):
    config = dataclasses.replace(
        COLD,
        max_running_sequences=max_running,
        max_prefill_tokens=max_prefill_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        # Room for one or two of them, or for all.
        device_budget_bytes=160_000 if small else COLD.device_budget_bytes,
    )
    with OfflineEngine(model, config) as engine:
        told = tell(engine, story, adapters, PROMPTS, LOGPROBS)
    for one in told:
        tokens, logprobs = cold(one.adapter, one.ask.prompt)
        assert one.error is None
        assert one.left or len(one.token_ids) == one.ask.new_tokens
        assert one.token_ids == tokens[: len(one.token_ids)]
        assert one.logprobs == logprobs[: len(one.token_ids)]


@pytest.mark.parametrize("adapter", [None, *range(len(SHAPES))])
def test_logits_are_pefts_within_a_tolerance(base, model, adapters, adapter):
    prompt = PROMPTS[-2]
    chosen = None if adapter is None else adapters[adapter]
    expected = oracle_logits(load_peft(base, chosen, torch.float32), prompt)
    with OfflineEngine(model, COLD) as engine:
        actual = engine.logits(prompt, chosen.handle if chosen else None)
    assert (actual - expected).abs().max() < TOLERANCE * (expected.max() - expected.min())
