"""What a ServeAdapter call may ask for: every limit with its message; prompts cut to fit."""

from __future__ import annotations

import math

import pytest
from finetuned_service.engine.messages import Sampling
from finetuned_service.errors import InvalidField, PromptTooLong
from finetuned_service.serving.checks import DEFAULT_MAX_TOKENS, check_call, fit_prompt, sampling_for
from finetuned_service.serving.values import Content, GenerationSettings, ServeCall, Truncation
from hypothesis import given
from hypothesis import strategies as st

CONTEXT = 64
VOCABULARY = 400
FIELD = "inputs[0]"


def call(*, inputs: int = 1, **generation) -> ServeCall:
    return ServeCall("acme", None, (Content("hello"),) * inputs, GenerationSettings(**generation))


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"max_tokens": 1},
        {"max_tokens": CONTEXT - 1},
        {"temperature": 0.0},
        {"temperature": 10.0},
        {"top_k": 1},
        {"top_k": 2**31 - 1},
        {"top_p": 1.0},
        {"top_p": 1e-9},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"stop": ("x" * 256,) * 16},
        {"stop_token_ids": tuple(range(64))},
        {"logprobs": 20},
        {"n": 16, "temperature": 0.1},
        {"n": 1},
        {"min_tokens": 0},
        {"min_tokens": 63},
        {"min_tokens": 5, "max_tokens": 5},
        {"repetition_penalty": 10.0},
        {"repetition_penalty": 1e-9},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"logit_bias": tuple((i, (-1) ** i * 100.0) for i in range(400))},
    ],
)
def test_the_edges_are_allowed(generation):
    check_call(call(**generation), CONTEXT, VOCABULARY)


@pytest.mark.parametrize("inputs", [1, 64])
def test_the_edges_of_inputs_are_allowed(inputs):
    check_call(call(inputs=inputs), CONTEXT, VOCABULARY)


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"max_tokens": 0}, "generate.max_tokens: is 0; allowed: 1 to 63"),
        ({"max_tokens": -1}, "generate.max_tokens: is -1; allowed: 1 to 63"),
        ({"max_tokens": CONTEXT}, "generate.max_tokens: is 64; allowed: 1 to 63"),
        ({"temperature": -1.0}, "generate.temperature: is -1.0; allowed: 0 (greedy) to 10"),
        ({"temperature": 10.1}, "generate.temperature: is 10.1; allowed: 0 (greedy) to 10"),
        ({"temperature": math.nan}, "generate.temperature: is nan; allowed: 0 (greedy) to 10"),
        ({"temperature": math.inf}, "generate.temperature: is inf; allowed: 0 (greedy) to 10"),
        ({"top_k": 0}, "generate.top_k: is 0; allowed: at least 1, or unset"),
        ({"top_k": -5}, "generate.top_k: is -5; allowed: at least 1, or unset"),
        ({"top_p": 0.0}, "generate.top_p: is 0.0; allowed: above 0 to 1"),
        ({"top_p": 1.01}, "generate.top_p: is 1.01; allowed: above 0 to 1"),
        ({"top_p": math.nan}, "generate.top_p: is nan; allowed: above 0 to 1"),
        ({"seed": -1}, "generate.seed: is -1; allowed: 0 to 2**63 - 1"),
        ({"seed": 2**63}, f"generate.seed: is {2**63}; allowed: 0 to 2**63 - 1"),
        ({"stop": ("x",) * 17}, "generate.stop: is 17 strings; allowed: up to 16"),
        ({"stop": ("ok", "")}, "generate.stop[1]: is 0 characters; allowed: 1 to 256 characters"),
        ({"stop": ("x" * 257,)}, "generate.stop[0]: is 257 characters; allowed: 1 to 256 characters"),
        (
            {"stop_token_ids": (3, -1)},
            "generate.stop_token_ids: is [3, -1]; allowed: up to 64 ids of 0 to 399",
        ),
        (
            {"stop_token_ids": tuple(range(65))},
            f"generate.stop_token_ids: is {list(range(65))}; allowed: up to 64 ids of 0 to 399",
        ),
        ({"logprobs": -1}, "generate.logprobs: is -1; allowed: 0 to 20"),
        ({"logprobs": 21}, "generate.logprobs: is 21; allowed: 0 to 20"),
        ({"stop_token_ids": (400,)}, "generate.stop_token_ids: is [400]; allowed: up to 64 ids of 0 to 399"),
        ({"delta_tokens": 0}, "generate.delta_tokens: is 0; allowed: 1 to 1048576"),
        ({"delta_tokens": 2**20 + 1}, "generate.delta_tokens: is 1048577; allowed: 1 to 1048576"),
        ({"n": 0}, "generate.n: is 0; allowed: 1 to 16"),
        ({"n": 17, "temperature": 1.0}, "generate.n: is 17; allowed: 1 to 16"),
        (
            {"n": 2},
            "generate.n: is 2 at temperature 0, where all samples are the same; allowed: 1, or a temperature above 0",
        ),
        ({"min_tokens": -1}, "generate.min_tokens: is -1; allowed: 0 to 63, the context less one token"),
        ({"min_tokens": 64}, "generate.min_tokens: is 64; allowed: 0 to 63, the context less one token"),
        ({"min_tokens": 6, "max_tokens": 5}, "generate.min_tokens: is 6; allowed: 0 to max_tokens (5)"),
        ({"repetition_penalty": 0.0}, "generate.repetition_penalty: is 0.0; allowed: above 0 to 10"),
        ({"repetition_penalty": 10.5}, "generate.repetition_penalty: is 10.5; allowed: above 0 to 10"),
        ({"repetition_penalty": math.nan}, "generate.repetition_penalty: is nan; allowed: above 0 to 10"),
        ({"presence_penalty": -2.1}, "generate.presence_penalty: is -2.1; allowed: -2 to 2"),
        ({"frequency_penalty": 2.1}, "generate.frequency_penalty: is 2.1; allowed: -2 to 2"),
        ({"frequency_penalty": math.nan}, "generate.frequency_penalty: is nan; allowed: -2 to 2"),
        ({"logit_bias": ((3, 101.0),)}, "generate.logit_bias[3]: is 101.0; allowed: -100 to 100"),
        ({"logit_bias": ((3, math.nan),)}, "generate.logit_bias[3]: is nan; allowed: -100 to 100"),
        (
            {"logit_bias": ((400, 1.0),)},
            "generate.logit_bias[400]: is for an unknown token; allowed: ids of 0 to 399, the base's vocabulary",
        ),
        (
            {"logit_bias": tuple((i % 400, 1.0) for i in range(1025))},
            "generate.logit_bias: is 1025 entries; allowed: up to 1024",
        ),
    ],
)
def test_what_is_not_allowed_is_named_with_its_limit(generation, said):
    with pytest.raises(InvalidField) as refusal:
        check_call(call(**generation), CONTEXT, VOCABULARY)
    assert refusal.value.message == said
    assert [f"{v.field}: {v.description}" for v in refusal.value.violations] == [said]


@pytest.mark.parametrize(("inputs", "said"), [(0, "is 0 inputs"), (65, "is 65 inputs")])
def test_the_number_of_inputs_is_limited(inputs, said):
    with pytest.raises(InvalidField, match=f"inputs: {said}; allowed: 1 to 64"):
        check_call(call(inputs=inputs), CONTEXT, VOCABULARY)


@pytest.mark.parametrize(("inputs", "n"), [(64, 1), (4, 16), (32, 2)])
def test_inputs_times_samples_are_limited(inputs, n):
    check_call(call(inputs=inputs, n=n, temperature=1.0), CONTEXT, VOCABULARY)
    with pytest.raises(InvalidField) as refusal:
        check_call(call(inputs=inputs + 1, n=n, temperature=1.0), CONTEXT, VOCABULARY)
    assert [violation.field for violation in refusal.value.violations] == ["inputs"]
    if n > 1:
        assert f"{inputs + 1} inputs with {n} samples each; allowed: 64 replies" in refusal.value.message


def test_everything_wrong_is_told_at_once():
    with pytest.raises(InvalidField) as refusal:
        check_call(call(max_tokens=0, temperature=-1.0, top_p=2.0), CONTEXT, VOCABULARY)
    assert [violation.field for violation in refusal.value.violations] == [
        "generate.max_tokens",
        "generate.temperature",
        "generate.top_p",
    ]


# Prompts


def fitted(tokens: int, context: int = CONTEXT, **generation):
    return fit_prompt(tuple(range(tokens)), GenerationSettings(**generation), context, FIELD)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "new_tokens"),
    [(1, None, 63), (63, None, 1), (40, None, 24), (1, 63, 63), (54, 10, 10), (40, 10, 10)],
)
def test_a_prompt_that_fits_stays_whole(tokens, max_tokens, new_tokens):
    for truncation in Truncation:
        prompt = fitted(tokens, max_tokens=max_tokens, truncation=truncation)
        assert prompt.token_ids == tuple(range(tokens))
        assert (prompt.truncated_tokens, prompt.max_new_tokens) == (0, new_tokens)


def test_without_a_wish_a_reply_has_so_many_tokens():
    assert fitted(10, context=10_000).max_new_tokens == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "said"),
    [
        (64, None, "inputs[0] has 64 tokens and the reply at least 1; the context holds 64"),
        (55, 10, "inputs[0] has 55 tokens and the reply 10; the context holds 64"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_unless_a_truncation_was_chosen(tokens, max_tokens, said):
    with pytest.raises(PromptTooLong) as refusal:
        fitted(tokens, max_tokens=max_tokens)
    assert refusal.value.message.startswith(said)
    assert refusal.value.metadata == {"prompt_tokens": str(tokens), "context_tokens": "64"}


@pytest.mark.parametrize(
    ("truncation", "max_tokens", "kept", "new_tokens"),
    [
        (Truncation.KEEP_END, 10, range(46, 100), 10),
        (Truncation.KEEP_START, 10, range(54), 10),
        (Truncation.KEEP_END, 63, range(99, 100), 63),
        (Truncation.KEEP_START, 63, range(1), 63),
        (Truncation.KEEP_END, None, range(68, 100), 32),
        (Truncation.KEEP_START, None, range(32), 32),
    ],
)
def test_a_prompt_is_cut_where_the_caller_chose(truncation, max_tokens, kept, new_tokens):
    prompt = fitted(100, max_tokens=max_tokens, truncation=truncation)
    assert prompt.token_ids == tuple(kept)
    assert (prompt.truncated_tokens, prompt.max_new_tokens) == (100 - len(kept), new_tokens)


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        (Truncation.KEEP_START, [*range(49), *range(95, 100)]),
        (Truncation.KEEP_END, [*range(46, 100)]),
    ],
)
def test_what_closes_a_conversation_is_never_cut(truncation, kept):
    settings = GenerationSettings(max_tokens=10, truncation=truncation)
    prompt = fit_prompt(range(100), settings, CONTEXT, FIELD, closing_tokens=5)
    assert prompt.token_ids == tuple(kept)
    assert prompt.truncated_tokens == 46


def test_no_room_but_for_what_closes_a_conversation_is_refused():
    settings = GenerationSettings(max_tokens=59, truncation=Truncation.KEEP_START)
    with pytest.raises(
        PromptTooLong, match=r"may keep 5 tokens beside the reply, and 5 of them end the last message"
    ):
        fit_prompt(range(100), settings, CONTEXT, FIELD, closing_tokens=5)


def test_a_prompt_leaves_room_for_the_shortest_reply():
    assert fitted(50, min_tokens=14).max_new_tokens == 14
    with pytest.raises(PromptTooLong, match="has 51 tokens and the reply at least 14; the context holds 64"):
        fitted(51, min_tokens=14)
    cut = fitted(100, min_tokens=40, truncation=Truncation.KEEP_END)
    assert (len(cut.token_ids), cut.max_new_tokens) == (24, 40)
    assert fitted(10, context=1000, min_tokens=300).max_new_tokens == 300


def test_a_cut_prompt_leaves_a_whole_reply():
    prompt = fitted(10_000, context=1000, truncation=Truncation.KEEP_END)
    assert (len(prompt.token_ids), prompt.max_new_tokens) == (1000 - DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS)


@pytest.mark.parametrize("truncation", list(Truncation))
def test_an_empty_prompt_is_refused(truncation):
    with pytest.raises(InvalidField, match=r"inputs\[0\]: is empty"):
        fitted(0, truncation=truncation)


@given(
    tokens=st.integers(1, 300),
    context=st.integers(2, 200),
    data=st.data(),
    truncation=st.sampled_from([Truncation.KEEP_END, Truncation.KEEP_START]),
)
def test_prompt_and_reply_always_fit(tokens, context, data, truncation):
    max_tokens = data.draw(st.none() | st.integers(1, context - 1))
    prompt = fitted(tokens, context=context, max_tokens=max_tokens, truncation=truncation)
    assert len(prompt.token_ids) >= 1
    assert len(prompt.token_ids) + prompt.truncated_tokens == tokens
    assert prompt.max_new_tokens >= 1
    assert len(prompt.token_ids) + prompt.max_new_tokens <= context
    assert max_tokens is None or prompt.max_new_tokens == max_tokens


# Sampling


def test_settings_reach_the_engine_with_their_defaults():
    prompt = fitted(3, max_tokens=5)
    sampling = sampling_for(GenerationSettings(max_tokens=5, seed=9), prompt, 0)
    assert sampling == Sampling(max_new_tokens=5, temperature=0.0, top_k=0, top_p=1.0, seed=9)
    chosen = GenerationSettings(
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=1,
        stop_token_ids=(4,),
        logprobs=2,
        ignore_eos=True,
        max_tokens=5,
    )
    assert sampling_for(chosen, prompt, 0) == Sampling(
        max_new_tokens=5,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=1,
        stop_token_ids=(4,),
        ignore_eos=True,
        logprobs=2,
    )


def test_inputs_of_one_call_differ_by_their_seed():
    prompt = fitted(3)
    seeds = [sampling_for(GenerationSettings(seed=2**63 - 1), prompt, index).seed for index in range(3)]
    assert seeds == [2**63 - 1, 0, 1]


def test_settings_of_the_logits_reach_the_engine():
    settings = GenerationSettings(
        seed=0,
        min_tokens=2,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((3, 1.0),),
    )
    sampling = sampling_for(settings, fitted(3, max_tokens=5), 0, grammar="g")
    assert sampling == Sampling(
        max_new_tokens=5,
        min_new_tokens=2,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((3, 1.0),),
        grammar="g",
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, 1), ({"delta_tokens": 9}, 9), ({"delta_tokens": 9, "stop": ("x",)}, 1)],
)
def test_tokens_wait_for_others_unless_a_stop_string_may_be_in_them(settings, told):
    assert sampling_for(GenerationSettings(**settings), fitted(3), 0).delta_tokens == told


def test_all_replies_of_a_call_have_seeds_of_their_own_and_the_same_every_time():
    prompt, settings = fitted(3), GenerationSettings(seed=7, temperature=1.0, n=16)

    def seeds():
        return [sampling_for(settings, prompt, i, sample).seed for i in range(64) for sample in range(16)]

    assert len({seed % 2**32 for seed in seeds()}) == 64 * 16
    assert seeds() == seeds()
    # As the contract says it: whoever wants one of them alone sends this seed.
    assert sampling_for(settings, prompt, 3, 2).seed == 7 + 3 + 2 * 64


def test_without_a_seed_every_reply_has_its_own():
    prompt = fitted(3)
    seeds = {sampling_for(GenerationSettings(), prompt, 0).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
