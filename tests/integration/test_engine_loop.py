"""Requests that come, go, fail and share, in the real loop on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import weakref
from pathlib import Path

import pytest
import torch
from finetuned_service.adapters.files import BaseGeometry, check_adapter
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import (
    AdapterHandle,
    Answer,
    Cancel,
    Failed,
    FinishReason,
    Residency,
    Sampling,
    SetResidency,
    Started,
    Submit,
    Tokens,
)
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import (
    AdapterIncompatible,
    Internal,
    InvalidAdapterFiles,
    ResourceExhausted,
    Unimplemented,
    from_wire,
)
from on_device import DEVICE
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONTEXT_TOKENS,
    load_peft,
    load_plain,
    oracle_logits,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
)

CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=8,
    max_prefill_tokens=16,
    kv_capacity_tokens=600,
    device_budget_bytes=1 << 20,
    host_budget_bytes=1 << 22,
)
GREEDY = Sampling(max_new_tokens=10, ignore_eos=True)
PROMPT = random_prompt(1, 9)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    return EngineModel.load(base)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [save_tiny_adapter(root / str(i), base, seed=i, rank=2 + 3 * i) for i in range(3)]


@pytest.fixture(scope="module")
def oracles(base, adapters):
    return [load_peft(base, adapter) for adapter in (*adapters, None)]


@pytest.fixture
def engine(model):
    with OfflineEngine(model, CONFIG) as engine:
        yield engine


class Watch:
    """Steps an engine and keeps each request's tokens and end."""

    def __init__(self, engine):
        self.engine = engine
        self.tokens = {}
        self.ends = {}
        self.answers = []

    def step(self):
        for event in self.engine.step():
            match event:
                case Started():
                    self.tokens[event.request_id] = []
                case Tokens():
                    self.tokens[event.request_id].extend(event.token_ids)
                    if event.finish:
                        self.ends[event.request_id] = event.finish
                case Failed():
                    self.ends[event.request_id] = from_wire(event.error)
                case Answer():
                    self.answers.append(event)

    def until(self, condition):
        while not condition():
            self.step()


def submit(request_id, adapter=None, prompt=PROMPT, sampling=GREEDY):
    return Submit(request_id, prompt, adapter.handle if adapter else None, sampling)


def test_joining_and_leaving_a_running_batch_changes_no_reply(engine, adapters, oracles):
    watch = Watch(engine)
    lengths = {0: 10, 1: 3, 2: 7, 3: 10, 4: 5, 5: 8}
    prompts = {i: random_prompt(20 + i, 5 + 7 * i) for i in lengths}
    for i, new in lengths.items():
        adapter = (*adapters, None)[i % 4]
        engine.deliver(submit(i, adapter, prompts[i], dataclasses.replace(GREEDY, max_new_tokens=new)))
        watch.step()
        watch.step()
    engine.deliver(submit(99, adapters[0]))
    watch.until(lambda: len(watch.tokens.get(99, ())) >= 2)
    engine.deliver(Cancel(99))
    watch.until(lambda: len(watch.ends) == 6)
    expected = {i: oracle_tokens(oracles[i % 4], prompts[i], new) for i, new in lengths.items()}
    assert {i: watch.tokens[i] for i in lengths} == expected


def test_cancelling_frees_slot_and_kv_before_the_next_step(engine, adapters):
    engine.generate([submit(0, adapters[0])])
    watch = Watch(engine)
    engine.deliver(*(submit(i, adapters[0]) for i in range(9)))
    watch.until(lambda: 0 in watch.tokens)
    assert 8 not in watch.tokens
    engine.deliver(Cancel(0), Cancel(8), Cancel(12345), submit(9))
    watch.step()
    assert 9 in watch.tokens
    engine.deliver(*(Cancel(i) for i in range(10)))
    snapshot = engine.inspect()
    assert (snapshot.running_sequences, snapshot.waiting_sequences, snapshot.kv_tokens_used) == (0, 0, 0)
    assert [a.running_sequences for a in snapshot.adapters] == [0]


def test_others_go_on_while_an_adapter_loads(engine, adapters):
    watch = Watch(engine)
    engine.deliver(submit(1), submit(2, adapters[0]))
    watch.step()
    assert list(watch.tokens) == [1]
    watch.until(lambda: len(watch.ends) == 2)
    assert watch.ends == {1: FinishReason.LENGTH, 2: FinishReason.LENGTH}


def test_no_more_beginnings_are_kept_than_was_asked_for(model):
    with OfflineEngine(model, dataclasses.replace(CONFIG, kept_prefixes=2)) as engine:
        engine.generate([dataclasses.replace(submit(i), prompt_token_ids=(3 + i,) * 32) for i in range(6)])
        assert engine._loop.scheduler.kv.used == 2 * 32
        for number in range(6):
            engine.logits((20 + number,) * 32, None)
        assert engine._loop.scheduler.kv.used == 2 * 32


def test_a_version_that_was_evicted_and_came_back_says_the_same(model, adapters, oracles):
    rank_bytes = 2 * (48 * 6 + 48 + 16 + 16 + 48 + 48 + 80 * 3) * 4
    with OfflineEngine(model, dataclasses.replace(CONFIG, device_budget_bytes=9 * rank_bytes)) as engine:
        for index in (0, 1, 2, 0, 2, 1):
            (completion,) = engine.generate([submit(1, adapters[index])])
            assert completion.token_ids == oracle_tokens(oracles[index], PROMPT, 10)
        assert engine.inspect().counters["adapter_evictions"] >= 3


def test_an_adapter_too_large_for_the_layout_is_refused_and_others_served(model, base, tmp_path):
    with OfflineEngine(model, dataclasses.replace(CONFIG, device_budget_bytes=20_000)) as engine:
        large = save_tiny_adapter(tmp_path, base, seed=1, rank=32)
        bad, good = engine.generate([submit(1, large), submit(2)])
    assert isinstance(bad.error, ResourceExhausted)
    assert good.finish is FinishReason.LENGTH


def damaged(adapter, directory, change):
    """A copy of an adapter with its tensors changed; digest as if it had been imported so."""
    directory.mkdir()
    tensors = {name: change(name, tensor) for name, tensor in load_file(adapter.directory / WEIGHTS).items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, directory / WEIGHTS)
    (directory / CONFIG_NAME).write_bytes((adapter.directory / CONFIG_NAME).read_bytes())
    return AdapterHandle("sha256:damaged", str(directory))


WEIGHTS, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
DAMAGE = {
    "missing": lambda name, t: None if name.endswith("layers.1.self_attn.k_proj.lora_B.weight") else t,
    "shape": lambda name, t: t[:, :-1].contiguous() if name.endswith("0.mlp.up_proj.lora_A.weight") else t,
    "nan": lambda name, t: t * float("nan") if name.endswith("0.mlp.up_proj.lora_A.weight") else t,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_adapter_fails_its_requests_and_changes_nothing(engine, adapters, tmp_path, kind):
    handle = damaged(adapters[0], tmp_path / "bad", DAMAGE[kind])
    requests = [Submit(1, PROMPT, handle, GREEDY), Submit(2, PROMPT, handle, GREEDY), submit(3, adapters[1])]
    first, second, good = engine.generate(requests)
    assert isinstance(first.error, InvalidAdapterFiles)
    assert isinstance(second.error, InvalidAdapterFiles)
    assert good.finish is FinishReason.LENGTH
    assert [a.digest for a in engine.inspect().adapters] == [adapters[1].digest]


def test_an_adapter_for_a_place_that_is_no_site_is_refused(engine, adapters, tmp_path):
    def rename(name):
        return name.replace("model.layers.0.mlp.up_proj", "lm_head")

    (tmp_path / "a").mkdir()
    tensors = {rename(name): t for name, t in load_file(adapters[0].directory / WEIGHTS).items()}
    save_file(tensors, tmp_path / "a" / WEIGHTS)
    (tmp_path / "a" / CONFIG_NAME).write_bytes((adapters[0].directory / CONFIG_NAME).read_bytes())
    (completion,) = engine.generate(
        [Submit(1, PROMPT, AdapterHandle("sha256:h", str(tmp_path / "a")), GREEDY)]
    )
    assert isinstance(completion.error, InvalidAdapterFiles)
    assert completion.token_ids == []


def test_an_adapter_that_overflows_fails_alone(engine, base, adapters, oracles, tmp_path):
    wild = save_tiny_adapter(tmp_path, base, seed=5, rank=4, spread=1e25)
    requests = [submit(1, wild), submit(2, adapters[0]), submit(3), submit(4, wild)]
    bad, good, plain, also_bad = engine.generate(requests)
    assert isinstance(bad.error, AdapterIncompatible)
    assert isinstance(also_bad.error, AdapterIncompatible)
    assert good.token_ids == oracle_tokens(oracles[0], PROMPT, 10)
    assert plain.token_ids == oracle_tokens(oracles[3], PROMPT, 10)


def test_a_row_that_cannot_be_sampled_fails_alone(engine, oracles):
    broken = Sampling(max_new_tokens=4, temperature=float("nan"), ignore_eos=True)
    bad, good = engine.generate([submit(1, sampling=broken), submit(2)])
    assert isinstance(bad.error, Internal)
    assert good.token_ids == oracle_tokens(oracles[3], PROMPT, 10)


def break_steps(engine, is_broken):
    run = engine._loop.runner.run

    def breaks(chunks, place_of, **settings):
        if any(is_broken(chunk.sequence) for chunk in chunks):
            raise RuntimeError("a kernel that gave up, naming /secret/path")
        return run(chunks, place_of, **settings)

    engine._loop.runner.run = breaks


def test_a_row_that_breaks_its_step_fails_alone(model, adapters, oracles):
    with OfflineEngine(model, CONFIG) as engine:
        break_steps(engine, lambda one: one.request_id == 2 and one.new_tokens == 3)
        requests = [submit(1, adapters[0]), submit(2, adapters[1]), submit(3)]
        first, broken, third = engine.generate(requests)
        assert isinstance(broken.error, Internal)
        assert "secret" not in broken.error.message
        assert broken.token_ids == oracle_tokens(oracles[1], PROMPT, 10)[:3]
        assert first.token_ids == oracle_tokens(oracles[0], PROMPT, 10)
        assert third.token_ids == oracle_tokens(oracles[3], PROMPT, 10)
        snapshot = engine.inspect()
        assert snapshot.kv_tokens_used == 0
        assert [a.running_sequences for a in snapshot.adapters] == [0, 0]


class Activations:
    """What a forward has in memory."""


def test_what_a_failed_step_held_is_free_when_its_rows_are_tried_alone(model, oracles, monkeypatch):
    """Two rows together may want more memory than there is, and each alone not."""
    # Without a server's settings of the log its lines show local variables, and what prints these keeps them.
    monkeypatch.setattr(EngineLoop, "_fault", lambda *_: Internal.opaque())
    with OfflineEngine(model, CONFIG) as engine:
        run, held = engine._loop.runner.run, []

        def short_of_memory(chunks, place_of, **settings):
            if len(chunks) > 1:
                activations = Activations()
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError
            assert [reference() for reference in held] == [None] * len(held)
            return run(chunks, place_of, **settings)

        engine._loop.runner.run = short_of_memory
        both = engine.generate([submit(1), submit(2)])
        assert held
    assert [one.error for one in both] == [None, None]
    assert [one.token_ids for one in both] == [oracle_tokens(oracles[3], PROMPT, 10)] * 2


def test_a_gpu_that_is_lost_ends_the_engine(model):
    """Nothing that it computes afterwards succeeds: the process ends, and another one is started."""
    with OfflineEngine(model, CONFIG) as engine:

        def lost(*_, **__):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        engine._loop.runner.run = lost
        with pytest.raises(torch.AcceleratorError):
            engine.generate([submit(1), submit(2)])


def test_a_request_that_cannot_begin_fails_alone(model, oracles, monkeypatch):
    with OfflineEngine(model, CONFIG) as engine:
        begin = engine._loop._replies.begin

        def begins(sequence, *matcher):
            if sequence.request_id == 1:
                raise RuntimeError("no memory, naming /secret/path")
            begin(sequence, *matcher)

        monkeypatch.setattr(engine._loop._replies, "begin", begins)
        bad, good = engine.generate([submit(1), submit(2)])
        assert isinstance(bad.error, Internal)
        assert "secret" not in bad.error.message
        assert good.token_ids == oracle_tokens(oracles[3], PROMPT, 10)
        assert engine.inspect().waiting_sequences == 0


def test_steps_that_all_break_fail_their_sequences_and_the_engine_goes_on(model, oracles):
    with OfflineEngine(model, CONFIG) as engine:
        break_steps(engine, lambda one: one.request_id < 3)
        bad = engine.generate([submit(1), submit(2)])
        assert [type(completion.error) for completion in bad] == [Internal, Internal]
        (good,) = engine.generate([submit(3)])
        assert good.token_ids == oracle_tokens(oracles[3], PROMPT, 10)
        assert engine.inspect().counters["step_failures"] == 3


@pytest.mark.parametrize(
    ("settings", "finish", "kept"),
    [
        ({"ignore_eos": True}, FinishReason.LENGTH, 10),
        ({"ignore_eos": False}, FinishReason.END, 2),
        ({"stop": True, "ignore_eos": True}, FinishReason.STOP, 2),
    ],
)
def test_end_and_stop_tokens_end_a_reply_and_are_left_out(base, oracles, settings, finish, kept):
    reply = oracle_tokens(oracles[3], PROMPT, 10)
    third = reply[2]
    assert third not in reply[:2]
    ended = EngineModel.load(base)
    ended.end_token_ids = frozenset({third})
    sampling = Sampling(
        max_new_tokens=10,
        stop_token_ids=(third,) if settings.get("stop") else (),
        ignore_eos=settings["ignore_eos"],
    )
    with OfflineEngine(ended, CONFIG) as engine:
        (completion,) = engine.generate([submit(1, sampling=sampling)])
    assert (completion.finish, completion.token_ids) == (finish, reply[:kept])


def test_the_context_ends_a_reply(model, oracles):
    prompt = random_prompt(3, CONTEXT_TOKENS - 4)
    with OfflineEngine(model, CONFIG) as engine:
        (completion,) = engine.generate([submit(1, prompt=prompt, sampling=Sampling(50, ignore_eos=True))])
    assert completion.finish is FinishReason.LENGTH
    assert completion.token_ids == oracle_tokens(oracles[3], prompt, 4)


def test_logprobs_are_those_of_the_oracle(engine, oracles):
    sampling = Sampling(max_new_tokens=5, logprobs=3, ignore_eos=True)
    (completion,) = engine.generate([submit(1, sampling=sampling)])
    logprobs = oracle_logits(oracles[3], [*PROMPT, *completion.token_ids]).log_softmax(-1)
    for position, (token_id, told) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        expected = logprobs[len(PROMPT) - 1 + position]
        assert told.logprob == pytest.approx(float(expected[token_id]), abs=1e-3)
        assert told.top_token_ids == tuple(expected.topk(3).indices.tolist())


def test_a_seed_says_the_same_alone_and_in_a_crowd(model, adapters):
    sampling = Sampling(max_new_tokens=8, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True)
    with OfflineEngine(model, CONFIG) as engine:
        (alone,) = engine.generate([submit(1, adapters[0], sampling=sampling)])
        crowd = [submit(i, adapters[i % 3], random_prompt(i, 5 + i), GREEDY) for i in range(2, 8)]
        among, *_ = engine.generate([submit(1, adapters[0], sampling=sampling), *crowd])
        (other,) = engine.generate([submit(1, adapters[0], sampling=dataclasses.replace(sampling, seed=6))])
    assert alone.token_ids == among.token_ids
    assert alone.token_ids != other.token_ids


def test_residency_without_memory_is_answered_with_an_error(model, base, adapters, tmp_path):
    rank_bytes = 2 * (48 * 6 + 48 + 16 + 16 + 48 + 48 + 80 * 3) * 4
    with OfflineEngine(model, dataclasses.replace(CONFIG, device_budget_bytes=9 * rank_bytes)) as engine:
        watch = Watch(engine)
        engine.deliver(SetResidency(1, adapters[2].handle, Residency.DEVICE, pinned=True))
        watch.until(lambda: watch.answers)
        assert [a.pinned for a in watch.answers[0].snapshot.adapters] == [True]
        (refused,) = engine.generate([submit(1, adapters[1])])
        assert isinstance(refused.error, ResourceExhausted)
        engine.deliver(SetResidency(2, adapters[1].handle, Residency.DEVICE))
        watch.until(lambda: len(watch.answers) == 2)
        assert isinstance(from_wire(watch.answers[1].error), ResourceExhausted)


def test_counters_count(engine, adapters):
    engine.generate([submit(1, adapters[0]), submit(2)])
    counters = engine.inspect().counters
    assert counters["prefill_tokens"] == 2 * len(PROMPT)
    assert counters["decode_tokens"] == 2 * 9
    assert counters["adapter_loads"] == 1
    assert counters["steps"] >= 10
    assert counters["step_seconds"] > 0
    assert counters["load_seconds"] > 0
    assert (counters["step_failures"], counters["load_failures"]) == (0, 0)


def test_histograms_tell_of_every_step_and_load(engine, adapters):
    engine.generate([submit(1, adapters[0]), submit(2)])
    found = engine.inspect()
    steps, counters = found.histograms, found.counters
    for name in ("step_seconds", "step_sequences", "step_tokens"):
        assert sum(steps[name].counts) == counters["steps"]
    assert steps["step_tokens"].total == counters["prefill_tokens"] + counters["decode_tokens"]
    assert steps["step_seconds"].total == pytest.approx(counters["step_seconds"])
    assert [sum(steps[name].counts) for name in ("read_seconds", "fill_seconds")] == [1, 1]
    (adapter,) = found.adapters
    assert 0 < adapter.device_bytes < adapter.resident_bytes


def test_untied_heads_and_the_weights_of_a_bfloat16_base(tmp_path):
    base = save_tiny_base(tmp_path / "base", tied=False, dtype=torch.bfloat16)
    adapter = save_tiny_adapter(tmp_path / "adapter", base, seed=1)
    model = EngineModel.load(base)
    assert model.dtype is torch.bfloat16
    with OfflineEngine(model, CONFIG) as engine:
        actual = engine.logits(PROMPT, adapter.handle)
    wide = load_plain(base, torch.float32)
    expected = oracle_logits(load_peft_wide(wide, adapter), PROMPT)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def load_peft_wide(base, adapter):
    """PEFT's adapter on a float32 base, for a tolerance that means something."""
    from peft import PeftModel
    from tiny_models import peft_warnings_allowed

    with peft_warnings_allowed():
        return PeftModel.from_pretrained(base, str(adapter.directory)).eval()


@pytest.mark.skipif(DEVICE != "cpu", reason="what is on a GPU is mapped from no file")
def test_weights_stay_mapped_from_the_file(base):
    model = EngineModel.load(base)
    pointer = model._module.model.layers[0].mlp.up_proj.base.weight.data_ptr()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    spans = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in lines]
    assert any(start <= pointer < end for start, end in spans)


def test_bases_with_windows_are_refused(tmp_path):
    base = save_tiny_base(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unimplemented, match="sliding window of 16"):
        EngineModel.load(base)


def test_the_digest_of_the_tests_is_the_importers(base, adapters):
    geometry = BaseGeometry("", "", linear_shapes(base / "model.safetensors"))
    assert check_adapter(adapters[0].directory, geometry, 64).digest == adapters[0].digest
