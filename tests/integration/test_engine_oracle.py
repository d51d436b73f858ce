"""The engine's numbers against PEFT's and transformers' own, float32, alone and in mixed batches."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from finetuned_service.adapters.files import spell_out_config, stored_digest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import FinishReason, Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from tiny_models import (
    ALL_PROJECTIONS,
    load_peft,
    oracle_logits,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
    save_tiny_ia3,
)

NEW_TOKENS = 12
CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=16,
    max_prefill_tokens=512,
    kv_capacity_tokens=4096,
    device_budget_bytes=4 * 1024 * 1024,
    host_budget_bytes=16 * 1024 * 1024,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    return EngineModel.load(base)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Of every method and shape that PEFT has: ranks, targets, patterns, rsLoRA, DoRA, IA3. None is the plain base."""
    root = tmp_path_factory.mktemp("adapters")
    shapes = [
        {"rank": 4},
        {"rank": 16, "alpha": 16.0},
        {"rank": 1, "target_modules": ("q_proj", "v_proj")},
        {"rank": 7, "target_modules": ("down_proj",), "use_rslora": True},
        {
            "rank": 3,
            "rank_pattern": {"q_proj": 9, "layers.1.mlp.up_proj": 2},
            "alpha_pattern": {"k_proj": 1.0},
        },
    ]
    saved = [save_tiny_adapter(root / str(i), base, seed=i, **shape) for i, shape in enumerate(shapes)]
    dora = {"rank": 5, "use_dora": True, "target_modules": ("q_proj", "v_proj", "up_proj")}
    return [
        None,
        *saved,
        save_tiny_adapter(root / "dora", base, seed=5, **dora),
        save_tiny_ia3(root / "ia3", base, seed=6),
        save_tiny_ia3(root / "outputs", base, seed=7, target_modules=("up_proj",), feedforward_modules=()),
    ]


COUNT = 9


@pytest.fixture(scope="module")
def oracle(base, adapters):
    """Greedy replies of PEFT by (index of adapter, prompt), each computed alone and once."""
    models = [load_peft(base, adapter) for adapter in adapters]
    known = {}

    def reply(index, prompt, new_tokens=NEW_TOKENS):
        key = (index, prompt, new_tokens)
        if key not in known:
            known[key] = oracle_tokens(models[index], prompt, new_tokens)
        return known[key]

    reply.models = models
    return reply


def submit(request_id, prompt, adapter, new_tokens=NEW_TOKENS):
    handle = adapter.handle if adapter else None
    return Submit(request_id, prompt, handle, Sampling(max_new_tokens=new_tokens, ignore_eos=True))


@pytest.mark.parametrize("index", range(9))
def test_logits_equal_pefts(model, adapters, oracle, index):
    prompt = random_prompt(1, 40)
    handle = adapters[index].handle if adapters[index] else None
    with OfflineEngine(model, CONFIG) as engine:
        actual = engine.logits(prompt, handle)
    torch.testing.assert_close(oracle_logits(oracle.models[index], prompt), actual, atol=2e-4, rtol=2e-4)


def test_a_shared_beginning_gives_pefts_replies_and_crosses_no_border(model, adapters, oracle):
    """Same beginnings with every method and the plain base, for two tenants, in one batch and again after it."""
    shared = random_prompt(7, 37)
    kinds = [(tenant, index) for tenant in ("acme", "globex") for index in range(COUNT)]
    asked, expected = [], []
    for number, (tenant, index) in enumerate(kinds * 2):
        prompt = (*shared, *random_prompt(20 + number, 5))
        one = submit(number, prompt, adapters[index])
        asked.append(dataclasses.replace(one, tenant=tenant))
        expected.append(oracle(index, prompt))
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=48)) as engine:
        first = engine.generate(asked[: len(kinds)])
        assert engine.inspect().counters["prefix_tokens_reused"] == 0, "all of other weights or tenants"
        second = engine.generate(asked[len(kinds) :])
        reused = engine.inspect().counters["prefix_tokens_reused"]
        assert engine.inspect().kv_tokens_used == 0
    assert [reply.token_ids for reply in [*first, *second]] == expected
    assert reused == len(kinds) * 32  # whole blocks of the 37


def test_adapters_change_the_logits_clearly(oracle):
    prompt = random_prompt(1, 40)
    plain = oracle_logits(oracle.models[0], prompt)
    for changed in oracle.models[1:]:
        assert (oracle_logits(changed, prompt) - plain).abs().max() > 0.05


@pytest.mark.parametrize("max_prefill_tokens", [1, 7, 16, 512])
def test_prompt_chunks_see_all_that_came_before(model, adapters, oracle, max_prefill_tokens):
    prompt = random_prompt(2, 50)
    config = dataclasses.replace(CONFIG, max_prefill_tokens=max_prefill_tokens)
    with OfflineEngine(model, config) as engine:
        actual = engine.logits(prompt, adapters[1].handle)
    torch.testing.assert_close(oracle_logits(oracle.models[1], prompt), actual, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("index", range(9))
def test_a_reply_alone_is_pefts(model, adapters, oracle, index):
    prompt = random_prompt(3, 20)
    with OfflineEngine(model, CONFIG) as engine:
        (completion,) = engine.generate([submit(1, prompt, adapters[index])])
    assert oracle(index, prompt) == completion.token_ids
    assert FinishReason.LENGTH is completion.finish


@pytest.mark.parametrize("max_prefill_tokens", [16, 512])
def test_replies_of_a_mixed_batch_are_those_of_each_alone(model, adapters, oracle, max_prefill_tokens):
    prompts = [random_prompt(10 + i, 5 + 4 * i) for i in range(18)]
    requests = [submit(i, prompt, adapters[i % COUNT]) for i, prompt in enumerate(prompts)]
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=max_prefill_tokens)) as engine:
        completions = engine.generate(requests)
    assert [oracle(i % COUNT, p) for i, p in enumerate(prompts)] == [c.token_ids for c in completions]


def test_modules_changed_counts_the_sites_of_the_adapter(model, adapters):
    prompt = random_prompt(3, 20)
    with OfflineEngine(model, CONFIG) as engine:
        completions = engine.generate([submit(i, prompt, adapter) for i, adapter in enumerate(adapters)])
    assert [c.modules_changed for c in completions] == [0, 14, 14, 4, 2, 14, 6, 6, 2]
    assert len(ALL_PROJECTIONS) == 7


def test_more_requests_than_slots_all_come_out_right(model, adapters, oracle):
    prompts = [random_prompt(30 + i, 3 + i) for i in range(12)]
    requests = [submit(i, p, adapters[i % COUNT], new_tokens=1 + i) for i, p in enumerate(prompts)]
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_running_sequences=3)) as engine:
        completions = engine.generate(requests)
    expected = [oracle(i % COUNT, p)[: 1 + i] for i, p in enumerate(prompts)]
    assert expected == [c.token_ids for c in completions]


def test_adapters_take_turns_in_a_layout_too_small_for_all(model, adapters, oracle):
    prompts = [random_prompt(50 + i, 9) for i in range(18)]
    requests = [submit(i, p, adapters[i % COUNT]) for i, p in enumerate(prompts)]
    rank_bytes = 2 * (48 * 6 + 48 + 16 + 16 + 48 + 48 + 80 * 3) * 4
    with OfflineEngine(model, dataclasses.replace(CONFIG, device_budget_bytes=20 * rank_bytes)) as engine:
        completions = engine.generate(requests)
        counters = engine.inspect().counters
    assert [oracle(i % COUNT, p) for i, p in enumerate(prompts)] == [c.token_ids for c in completions]
    assert counters["adapter_evictions"] > 0


def test_scores_are_the_log_probabilities_of_the_oracle(model, adapters, oracle):
    rows = [random_prompt(70 + i, 10 + i) for i in range(3)]
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=4)) as engine:
        actual = engine.score(rows, adapters[2].handle)
    for row, scores in zip(rows, actual, strict=True):
        logprobs = oracle_logits(oracle.models[2], row).log_softmax(-1)
        expected = logprobs[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        torch.testing.assert_close(expected, scores, atol=2e-4, rtol=2e-4)


def test_the_base_is_the_same_before_and_after_everything(base, model, adapters):
    from finetuned_service.bases.manifest import compute_digest

    before = model.fingerprint()
    with OfflineEngine(model, dataclasses.replace(CONFIG, device_budget_bytes=200_000)) as engine:
        engine.generate([submit(i, random_prompt(i, 9), adapters[i % COUNT]) for i in range(18)])
        assert before == engine.inspect(verify_base=True).base_digest
    assert compute_digest(base) == before


@pytest.mark.parametrize(
    ("family", "window"),
    # A window of the whole context hides nothing.
    [
        ("Qwen2", None),
        ("Qwen3", None),
        ("Mistral", None),
        ("Mistral", 128),
        ("Mistral", 4096),
        ("SmolLM3", None),
    ],
)
def test_other_families_of_decoders_are_served_as_transformers_computes_them(family, window, tmp_path):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.15,
        sliding_window=window,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    plain = transformers.AutoModelForCausalLM.from_config(config).eval()
    plain.save_pretrained(tmp_path)
    prompt = random_prompt(5, 30)
    with OfflineEngine(
        EngineModel.load(tmp_path), dataclasses.replace(CONFIG, max_prefill_tokens=11)
    ) as engine:
        logits = engine.logits(prompt)
        (completion,) = engine.generate([submit(1, prompt, None)])
    torch.testing.assert_close(logits, oracle_logits(plain, prompt), atol=2e-4, rtol=2e-4)
    assert completion.token_ids == oracle_tokens(plain, prompt, NEW_TOKENS)


@pytest.mark.parametrize(("names", "saved"), [(("embed_tokens", "norm"), 6), (("layernorm",), 4)])
def test_modules_to_save_are_those_that_peft_means(base, model, tmp_path, names, saved):
    """By the end of the whole name: "norm" is each `input_layernorm` and `post_attention_layernorm`, too."""
    adapter = save_tiny_adapter(tmp_path, base, seed=8, target_modules=("q_proj",), modules_to_save=names)
    prompt = random_prompt(3, 20)
    with OfflineEngine(model, CONFIG) as engine:
        logits = engine.logits(prompt, adapter.handle)
        (completion,) = engine.generate([submit(1, prompt, adapter)])
    torch.testing.assert_close(logits, oracle_logits(load_peft(base, adapter), prompt), atol=2e-4, rtol=2e-4)
    assert completion.modules_changed == 2 + saved
    spell_out_config(tmp_path)
    assert stored_digest(tmp_path) == adapter.digest
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(config["modules_to_save"]) == saved
    assert config["target_modules"] == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
