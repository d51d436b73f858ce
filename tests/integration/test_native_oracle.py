"""The native path against transformers and PEFT: nearer to float32 than their own bfloat16, bit for bit alone
and in company.
"""

from __future__ import annotations

import ctypes
import dataclasses

import pytest
import torch
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.lazy_pages import ReadyBlocks
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.native.build import library_path
from finetuned_service.engine.native.library import STORED_DTYPES, Library, LoraSourceStruct
from finetuned_service.engine.native.model import NativeModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.engine.sampling import greedy_tokens
from native_builds import HAS_TILES
from tiny_models import (
    load_peft,
    load_plain,
    oracle_logits,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
)
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

WIDTHS = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 128, "initializer_range": 0.1, **WIDTHS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
CONFIG = EngineConfig(
    base_directory="",
    threads=2,
    max_running_sequences=16,
    max_prefill_tokens=512,
    kv_capacity_tokens=4096,
    device_budget_bytes=4 * 1024 * 1024,
    host_budget_bytes=16 * 1024 * 1024,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16, head_dim=16, **WIDTHS)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Ranks of all kinds: odd, over a group of 16, different at each site, at few sites. None: plain base."""
    root = tmp_path_factory.mktemp("adapters")
    shapes = [
        {"rank": 4},
        {"rank": 16, "alpha": 16.0},
        {"rank": 1, "target_modules": ("q_proj", "v_proj")},
        {"rank": 37, "target_modules": ("down_proj", "o_proj"), "use_rslora": True},
        {"rank": 3, "rank_pattern": {"q_proj": 9, "layers.1.mlp.up_proj": 2}},
    ]
    saved = [
        save_tiny_adapter(root / str(i), base, seed=i, spread=0.1, **shape) for i, shape in enumerate(shapes)
    ]
    return [None, *saved]


def handle_of(adapter):
    return adapter.handle if adapter else None


def test_the_library_is_what_it_was_compiled_as(library, request):
    named = request.node.callspec.params["library_file"]
    assert library.may_multiply
    assert (library.instructions == "AMX-BF16") == (named == "native" and HAS_TILES)
    if named == "portable":
        assert library.instructions == "portable"


class Forbidden(Library):
    """As if the system did not let this process use the processor's matrix unit."""

    def __init__(self, path):
        super().__init__(path)
        self.may_multiply = False


def test_without_leave_to_use_tiles_products_are_computed_in_vectors(tmp_path):
    assert Forbidden.of_machine(str(tmp_path)).instructions != "AMX-BF16"


def test_with_leave_the_best_instructions_are_used(tmp_path):
    best = Library(library_path(str(tmp_path)))
    used = Library.of_machine(str(tmp_path))
    assert used.may_multiply
    assert (used.instructions == best.instructions) == best.may_multiply


@pytest.mark.parametrize("index", range(6))
def test_nearer_to_float32_than_peft_in_bfloat16(base, model, adapters, index):
    prompt = random_prompt(1, 70)
    exact = oracle_logits(load_peft(base, adapters[index], torch.float32), prompt)
    rounded = oracle_logits(load_peft(base, adapters[index], torch.bfloat16), prompt)
    with OfflineEngine(model, CONFIG) as engine:
        actual = engine.logits(prompt, handle_of(adapters[index]))
    ours, theirs = (actual - exact).square().mean().sqrt(), (rounded - exact).square().mean().sqrt()
    # Scaling is folded into B and rounded with it, which PEFT does not do: hence not always strictly below.
    assert ours < 1.1 * theirs
    assert ours < 0.02 * exact.square().mean().sqrt()


@pytest.mark.parametrize("chunk", [1, 5, 16, 33])
def test_a_prompt_cut_into_chunks_is_the_same_bit_for_bit(model, adapters, chunk):
    prompt = random_prompt(2, 100)
    for adapter in adapters[:3]:
        with OfflineEngine(model, CONFIG) as engine:
            whole = engine.logits(prompt, handle_of(adapter))
        with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=chunk)) as engine:
            assert torch.equal(whole, engine.logits(prompt, handle_of(adapter)))


def test_what_lay_in_an_adapters_memory_before_changes_no_bit(model, adapters, monkeypatch):
    """Products read whole tiles: behind the last B, too, and multiply what is there with zero."""
    prompt = random_prompt(5, 40)

    def logits():
        with OfflineEngine(model, CONFIG) as engine:
            return [engine.logits(prompt, handle_of(adapter)) for adapter in adapters]

    expected, take, taken = logits(), ReadyBlocks.take, []

    def take_used(blocks, size_bytes):
        taken.append(size_bytes)
        return take(blocks, size_bytes).fill_(255)  # NaN, as bfloat16 and as float32

    monkeypatch.setattr(ReadyBlocks, "take", take_used)
    found = logits()
    assert len(taken) >= len(adapters) - 1
    for before, after in zip(expected, found, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(model, adapters, threads):
    prompt = random_prompt(3, 40)
    with OfflineEngine(model, CONFIG) as engine:
        expected = engine.logits(prompt, adapters[2].handle)
    with OfflineEngine(model, dataclasses.replace(CONFIG, threads=threads)) as engine:
        assert torch.equal(expected, engine.logits(prompt, adapters[2].handle))


@pytest.mark.parametrize("max_prefill_tokens", [7, 512])
def test_replies_in_company_are_those_alone_to_the_last_bit(model, adapters, max_prefill_tokens):
    """Log-probabilities too, for every mix of adapters, lengths and places in the batch."""
    asked = [
        Submit(
            i,
            tuple(random_prompt(10 + i, 3 + 6 * i)),
            handle_of(adapters[i % len(adapters)]),
            Sampling(max_new_tokens=9, ignore_eos=True, logprobs=3),
        )
        for i in range(14)
    ]
    config = dataclasses.replace(CONFIG, max_prefill_tokens=max_prefill_tokens, max_running_sequences=5)
    with OfflineEngine(model, config) as engine:
        together = engine.generate(asked)
    for submit, reply in zip(asked, together, strict=True):
        with OfflineEngine(model, CONFIG) as engine:
            (alone,) = engine.generate([submit])
        assert alone == reply


def test_the_keys_of_another_sequence_leave_no_trace(model, adapters):
    """The arena is used again and again, also after a sequence whose values overflowed."""
    prompt = random_prompt(4, 50)
    with OfflineEngine(model, CONFIG) as engine:
        expected = engine.logits(prompt)
        engine._loop.runner._arena.fill_(torch.nan)
        assert torch.equal(expected, engine.logits(prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 48, 40), (16, 48, 32), (37, 80, 100)])
def test_packed_adapters_are_what_torch_rounds(library, dtype, rank, inputs, outputs):
    generator = torch.Generator().manual_seed(rank)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rank, inputs), (outputs, rank)))
    a[0, :4] = torch.tensor([0.0, -0.0, 6e-8, -2.5e-5])  # subnormal in float16
    packed_a, packed_b, wrong = packed_lora(library, a, b, scaling=0.3)
    assert wrong == -1
    assert torch.equal(packed_a, a.to(torch.bfloat16))
    assert torch.equal(packed_b, b.float().mul(0.3).to(torch.bfloat16))


@pytest.mark.parametrize("spoilt", ["a", "b"])
def test_what_is_not_finite_in_bfloat16_is_told(library, spoilt):
    a, b = torch.ones(3, 32), torch.ones(32, 3)
    {"a": a, "b": b}[spoilt][2, 2] = 3.4e38  # finite in float32, rounded up to infinity
    assert packed_lora(library, a, b, scaling=1.0)[2] == 0


def packed_lora(library, a, b, scaling):
    """A and B as `pack_lora` rounds them, taken out of their packed form; and what it said."""
    (rank, inputs), outputs, ranks = a.shape, b.shape[0], a.shape[0] + a.shape[0] % 2
    room_a = torch.full((ranks * inputs,), torch.nan, dtype=torch.bfloat16)
    room_b = torch.full((-(-outputs // 32) * 32 * ranks,), torch.nan, dtype=torch.bfloat16)
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}
    site = LoraSourceStruct(
        a.data_ptr(),
        b.data_ptr(),
        room_a.data_ptr(),
        room_b.data_ptr(),
        rank,
        inputs,
        outputs,
        scaling,
        STORED_DTYPES[names[a.dtype]],
    )
    wrong = library.pack_lora(ctypes.byref(site), 1)
    groups = [
        group.view(inputs // 2, -1, 2).transpose(0, 1).reshape(-1, inputs)
        for group in room_a.split(16 * inputs)
    ]
    unpacked_a = torch.cat(groups)
    unpacked_b = room_b.view(-1, ranks // 2, 32, 2).transpose(1, 2).reshape(-1, ranks)
    assert not unpacked_a[rank:].any()
    assert not unpacked_b[outputs:].any()
    assert not unpacked_b[:, rank:].any()
    return unpacked_a[:rank], unpacked_b[:outputs, :rank], wrong


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(vocab_size=97, tie_word_embeddings=False, **(SMALL | {"hidden_size": 96})),
        Qwen3Config(vocab_size=97, head_dim=80, tie_word_embeddings=True, **SMALL),
        Qwen3Config(vocab_size=130, head_dim=32, **(SMALL | {"num_key_value_heads": 1})),
        MistralConfig(
            vocab_size=97, head_dim=16, **SMALL
        ),  # whose window of 4,096 tokens is longer than its context
        LlamaConfig(vocab_size=97, head_dim=16, rope_parameters=DYNAMIC, **SMALL),
    ],
    ids=["qwen2", "qwen3", "multi-query", "wide-window", "dynamic"],
)
def test_biases_head_norms_and_other_heads(library, tmp_path, config):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    made.save_pretrained(tmp_path)
    prompt = random_prompt(5, 60)
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = exact(torch.tensor([prompt])).logits[0]
        theirs = (rounded(torch.tensor([prompt])).logits[0].float() - expected).square().mean()
    with OfflineEngine(NativeModel.load(tmp_path, library), CONFIG) as engine:
        ours = (engine.logits(prompt) - expected).square().mean()
    assert ours < theirs


def test_long_context_attends_to_all_of_it(library, tmp_path):
    """Stretches of keys beyond the first, and angles of late positions; chunks that end inside a stretch."""
    base = save_tiny_base(tmp_path, dtype=torch.bfloat16, head_dim=16, max_position_embeddings=2400, **WIDTHS)
    prompt = random_prompt(6, 2200)
    exact = oracle_logits(load_plain(base, torch.float32), prompt)
    theirs = (oracle_logits(load_plain(base, torch.bfloat16), prompt) - exact).square().mean()
    model = NativeModel.load(base, library)
    with OfflineEngine(model, CONFIG) as engine:
        found = engine.logits(prompt)
    assert (found - exact).square().mean() < theirs
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=301)) as engine:
        assert torch.equal(found, engine.logits(prompt))


def test_the_highest_logit_is_the_one_that_torch_finds(library, tmp_path):
    """The first of equal ones, in a vocabulary that ends within a panel; none where one is not finite."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=97, tie_word_embeddings=False, **(SMALL | {"hidden_size": 96}))
    made = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    head = made.get_output_embeddings().weight.data
    head[40:80] = head[:40]
    made.save_pretrained(tmp_path)
    model = NativeModel.load(tmp_path, library)
    final_norm = next(t for t in model.weights._kept if t.data_ptr() == model.weights._struct.final_norm)
    prompts = [random_prompt(i, 3 + i) for i in range(14)]

    def asked():
        with OfflineEngine(model, CONFIG) as engine:
            seen = []
            run = engine._loop.runner.run
            engine._loop.runner.run = lambda *args, **options: seen.append(run(*args, **options)) or seen[-1]
            engine.generate(
                [Submit(i, tuple(p), None, Sampling(4, ignore_eos=True)) for i, p in enumerate(prompts)]
            )
        return seen

    steps = asked()
    chosen = [token_id for step in steps for token_id in step.greedy]
    assert chosen == [token_id for step in steps for token_id in greedy_tokens(step.logits)]
    assert len(chosen) == 14 * 4
    assert all(token_id < 40 or token_id >= 80 for token_id in chosen)
    for wrong in (torch.nan, torch.inf):
        final_norm[3] = wrong
        assert [step.greedy for step in asked()] == [[None] * 14]


def test_the_digest_is_that_of_what_serves(model, base):
    before = model.fingerprint()
    assert EngineModel.load(base).fingerprint() == before
    packed, _, _ = next(iter(model.weights._packed.values()))
    kept = packed[7].clone()
    packed[7] += 1
    assert before != model.fingerprint()
    packed[7] = kept
    assert before == model.fingerprint()


def ask(request_id, prompt, adapter, tenant="acme"):
    sampling = Sampling(max_new_tokens=8, ignore_eos=True, logprobs=2)
    return Submit(request_id, tuple(prompt), handle_of(adapter), sampling, tenant)


def test_a_shared_beginning_changes_no_bit_and_crosses_no_border(model, adapters):
    """Same beginnings under other weights, other tenants, in one batch and one after the other."""
    shared = random_prompt(7, 70)
    asked = [
        ask(100 * t + 10 * a + n, [*shared, *random_prompt(20 + n, 5)], adapters[a], tenant)
        for t, tenant in enumerate(("acme", "globex"))
        for a in range(3)
        for n in range(3)
    ]
    alone = []
    for submit in asked:
        with OfflineEngine(model, CONFIG) as engine:
            alone += engine.generate([submit])
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=40)) as engine:
        together = engine.generate(asked)
        counters = engine.inspect().counters
        again = engine.generate(
            [dataclasses.replace(submit, request_id=-1 - i) for i, submit in enumerate(asked)]
        )
        snapshot = engine.inspect()
    assert together == alone
    assert again == alone
    # 64 of each prompt's 75 tokens for all but the first of the six kinds, at the least; all of them again.
    assert counters["prefix_tokens_reused"] >= 6 * 64
    assert snapshot.counters["prefix_tokens_reused"] >= counters["prefix_tokens_reused"] + 18 * 64
    assert snapshot.kv_tokens_used == 0


def test_scores_from_a_place_on_are_those_of_the_whole_row(model, adapters):
    rows = [[*random_prompt(8, 66), *random_prompt(30 + i, 9)] for i in range(3)]
    with OfflineEngine(model, dataclasses.replace(CONFIG, max_prefill_tokens=50)) as engine:
        whole = engine.score(rows, adapters[1].handle)
        parts = engine.score(rows, adapters[1].handle, [66, 60, 1])
    assert all(
        torch.equal(full[first - 1 :], part)
        for full, part, first in zip(whole, parts, (66, 60, 1), strict=True)
    )
