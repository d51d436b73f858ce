"""Grammars, penalties and samples in the real loop, on both paths: every token allowed, every row by itself."""

from __future__ import annotations

import dataclasses
import json
import re

import jsonschema
import pytest
import torch
from finetuned_service.bases.convert import import_directory
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Cancel, FinishReason, Sampling, Submit
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import InvalidField
from finetuned_service.serving.checks import grammar_of
from finetuned_service.serving.values import GenerationSettings, Regex
from finetuned_service.text.grammar import json_schema_grammar, limits, regex_grammar
from finetuned_service.text.tokenizer import BaseTokenizer
from llguidance import LLMatcher, LLTokenizer
from tiny_bases import make_tiny_base
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_byte_fallback, write_tokenizer
from tokenizers import Tokenizer
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=32,
    max_prefill_tokens=128,
    kv_capacity_tokens=8192,
    device_budget_bytes=1 << 20,
    host_budget_bytes=1 << 22,
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": -5, "maximum": 500},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "ü"]}, "maxItems": 3},
        "nested": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
REGEX = r"([0-9]{2,4}-[a-f]{1,3}|Größe: [0-9]+ (cm|m))(, ok)?"
JSON_GRAMMAR = json_schema_grammar(json.dumps(SCHEMA), "generate.json_schema")
REGEX_GRAMMAR = regex_grammar(REGEX, "generate.regex")
PATHS = {"plain": {"dtype": torch.float32}, "native": {"dtype": torch.bfloat16, "head_dim": 16}}


@pytest.fixture(scope="module", params=list(PATHS))
def model(request, tmp_path_factory):
    directory = make_tiny_base(
        tmp_path_factory.mktemp(request.param) / "base", max_position_embeddings=512, **PATHS[request.param]
    )
    return load_model(directory, compute=request.param)


@pytest.fixture(scope="module")
def tokenizer(model):
    return BaseTokenizer.load(model.directory)


@pytest.fixture(scope="module")
def vocabulary(model):
    text = (model.directory / "tokenizer.json").read_text()
    return LLTokenizer(text, n_vocab=model.vocabulary_tokens, eos_token=sorted(model.end_token_ids))


def prompt_of(tokenizer, text="please answer"):
    return tuple(tokenizer.encode(text))


def generate(model, prompt, *samplings):
    with OfflineEngine(model, CONFIG) as engine:
        replies = engine.generate([Submit(i, prompt, None, s) for i, s in enumerate(samplings)])
    for reply in replies:
        if reply.error is not None:
            raise reply.error
    return replies


def check_replies(replies, grammar, is_valid, tokenizer, vocabulary):
    """Whole ones are valid, others the beginning of a valid one, token for token; returns the whole ones."""
    whole = 0
    for reply in replies:
        matcher = LLMatcher(vocabulary, grammar, limits=limits(), log_level=0)
        assert matcher.try_consume_tokens(reply.token_ids) == len(reply.token_ids)
        if reply.finish is FinishReason.END:
            assert is_valid(tokenizer.decode(reply.token_ids))
            whole += 1
        else:
            assert reply.finish is FinishReason.LENGTH
    return whole


def follows_schema(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_every_reply_is_what_its_own_grammar_allows(model, tokenizer, vocabulary, temperature):
    """Rows of two grammars and of none in one batch; a random model wants anything but JSON."""
    seeds = range(6)

    def settings(grammar, seed):
        return Sampling(80, temperature=temperature, seed=seed, grammar=grammar)

    asked = [settings(grammar, s) for s in seeds for grammar in (JSON_GRAMMAR, REGEX_GRAMMAR)]
    plain = Sampling(20, ignore_eos=True)
    *replies, last = generate(model, prompt_of(tokenizer), *asked, plain)
    whole = check_replies(replies[::2], JSON_GRAMMAR, follows_schema, tokenizer, vocabulary)
    whole += check_replies(
        replies[1::2], REGEX_GRAMMAR, lambda text: re.fullmatch(REGEX, text), tokenizer, vocabulary
    )
    assert whole >= len(seeds)
    assert last.token_ids == generate(model, prompt_of(tokenizer), plain)[0].token_ids


def test_a_reply_ends_where_the_grammar_does_whatever_else_is_wished(model, tokenizer):
    grammar = regex_grammar("(yes|no){2}", "generate.regex")
    prompt = prompt_of(tokenizer)
    drawn = Sampling(60, temperature=2.0, grammar=grammar)
    samplings = (
        drawn,
        dataclasses.replace(drawn, min_new_tokens=40),
        dataclasses.replace(drawn, ignore_eos=True),
        dataclasses.replace(drawn, logit_bias=tuple((i, -100.0) for i in range(200))),
        dataclasses.replace(drawn, repetition_penalty=5.0, frequency_penalty=2.0),
    )
    for reply in generate(model, prompt, *samplings):
        assert re.fullmatch("(yes|no){2}", tokenizer.decode(reply.token_ids))
        assert reply.finish is FinishReason.END


@pytest.mark.parametrize(
    "pattern", [" yes| no", "  a{2}", "[a-c]+!", "(?i) Größe|x", "^(yes|no)$", r"\A[ab]/c\z"]
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_where_a_text_loses_its_first_space_the_pattern_is_of_the_text(tmp_path, pattern, temperature):
    source = write_byte_fallback(tmp_path / "source")
    tokenizer = BaseTokenizer.load(source)
    save_tiny_base(source, vocab_size=tokenizer.vocabulary_size)
    import_directory(source, tmp_path / "base")
    assert tokenizer.drops_first_space
    asked = GenerationSettings(constraint=Regex(pattern))
    grammar = grammar_of(asked, drops_first_space=tokenizer.drops_first_space)
    drawn = Sampling(80, temperature=temperature, seed=1, grammar=grammar)
    (reply,) = generate(load_model(tmp_path / "base"), prompt_of(tokenizer), drawn)
    if reply.finish is FinishReason.END:
        assert re.fullmatch(pattern.replace(r"\z", r"\Z"), tokenizer.decode(reply.token_ids))
    else:
        assert pattern == "[a-c]+!"  # it may go on as long as it likes


def test_grammars_are_kept_to_where_tokens_were_added_without_an_embedding(tmp_path):
    source = write_tokenizer(tmp_path / "source")
    save_tiny_base(source, vocab_size=byte_level().get_vocab_size())
    added = Tokenizer.from_file(str(source / "tokenizer.json"))
    added.add_special_tokens(["<pad>", "<more>"])
    added.save(str(source / "tokenizer.json"))
    import_directory(source, tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base"), BaseTokenizer.load(source)
    assert tokenizer.vocabulary_size == model.vocabulary_tokens + 2
    assert not tokenizer.drops_first_space
    drawn = Sampling(20, temperature=1.0, seed=1, grammar=regex_grammar("(yes|no)!", "generate.regex"))
    (reply,) = generate(model, prompt_of(tokenizer), drawn)
    assert re.fullmatch("(yes|no)!", tokenizer.decode(reply.token_ids))


def test_where_the_grammar_could_end_the_end_is_put_off(model, tokenizer):
    grammar = regex_grammar("a+b?", "generate.regex")
    prompt = prompt_of(tokenizer)
    longer = Sampling(30, temperature=1.0, grammar=grammar, min_new_tokens=6)
    for reply in generate(model, prompt, *(dataclasses.replace(longer, seed=seed) for seed in range(8))):
        text = tokenizer.decode(reply.token_ids)
        assert len(reply.token_ids) >= 6 or text.endswith("b")
    bias = (*((end, 100.0) for end in model.end_token_ids), (tokenizer.encode("b")[0], -100.0))
    ended, ignoring = generate(
        model,
        prompt,
        Sampling(12, grammar=grammar, logit_bias=bias),
        Sampling(12, grammar=grammar, logit_bias=bias, ignore_eos=True),
    )
    assert (ended.finish, tokenizer.decode(ended.token_ids)[:1]) == (FinishReason.END, "a")
    assert (ignoring.finish, len(ignoring.token_ids)) == (FinishReason.LENGTH, 12)


def test_a_stop_token_ends_a_constrained_reply(model, tokenizer):
    (b,) = tokenizer.encode("b")
    sampling = Sampling(
        30, grammar=regex_grammar("a+bc", "generate.regex"), stop_token_ids=(b,), logit_bias=((b, 100.0),)
    )
    (reply,) = generate(model, prompt_of(tokenizer), sampling)
    assert reply.finish is FinishReason.STOP
    assert set(tokenizer.decode(reply.token_ids)) == {"a"}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_whose_grammar_leaves_only_a_stop_token_that_is_too_early_ends(model, tokenizer, temperature):
    (b,) = tokenizer.encode("b")
    sampling = Sampling(
        30,
        temperature=temperature,
        grammar=regex_grammar("aab", "generate.regex"),
        stop_token_ids=(b,),
        min_new_tokens=20,
        # One character a token.
        logit_bias=tuple(
            (i, -100.0) for i in range(model.vocabulary_tokens) if i != tokenizer.encode("a")[0]
        ),
    )
    (reply,) = generate(model, prompt_of(tokenizer), sampling)
    assert (reply.finish, tokenizer.decode(reply.token_ids)) == (FinishReason.END, "aa")


def test_a_grammar_that_gets_too_complex_fails_its_row_alone(model, tokenizer):
    grammar = regex_grammar(r"([a-z]{1,40}){1,40}", "generate.regex")
    plain = Sampling(8, ignore_eos=True)
    prompt = prompt_of(tokenizer)
    wild = Sampling(300, temperature=3.0, grammar=grammar, min_new_tokens=290, seed=1)
    with OfflineEngine(model, CONFIG) as engine:
        bad, good = engine.generate([Submit(0, prompt, None, wild), Submit(1, prompt, None, plain)])
        broken = Submit(0, prompt, None, dataclasses.replace(plain, grammar="no grammar"))
        (refused,) = engine.generate([broken])
        assert engine.inspect().running_sequences == engine.inspect().waiting_sequences == 0
    assert isinstance(bad.error, InvalidField)
    assert "became too complex" in bad.error.message
    assert good.token_ids == generate(model, prompt, plain)[0].token_ids
    assert isinstance(refused.error, InvalidField)


def test_cancelling_while_the_grammar_is_made_leaves_nothing(model, tokenizer):
    prompt = prompt_of(tokenizer)
    with OfflineEngine(model, CONFIG) as engine:
        asked = [Submit(i, prompt, None, Sampling(5, grammar=JSON_GRAMMAR)) for i in range(3)]
        engine.deliver(*asked, *(Cancel(i) for i in range(3)))
        engine.step()
        snapshot = engine.inspect()
        assert (snapshot.running_sequences, snapshot.waiting_sequences) == (0, 0)
        (reply,) = engine.generate([Submit(9, prompt, None, Sampling(5, grammar=REGEX_GRAMMAR))])
        assert reply.error is None


def test_greedy_with_a_penalty_is_the_oracles_choice_at_every_step(model, tokenizer):
    prompt = prompt_of(tokenizer, "the weather the weather the weather")
    sampling = Sampling(24, repetition_penalty=1.8, ignore_eos=True, logprobs=1)
    (reply,) = generate(model, prompt, sampling)
    processor = RepetitionPenaltyLogitsProcessor(1.8)
    with OfflineEngine(model, CONFIG) as engine:
        logits = engine.logits([*prompt, *reply.token_ids])
    for place, token_id in enumerate(reply.token_ids):
        row = logits[len(prompt) - 1 + place]
        before = torch.tensor([[*prompt, *reply.token_ids[:place]]])
        scores = processor(before, row[None].clone())[0]
        # float32 rows depend on their batch in the last bits: no other token may be clearly better.
        assert scores[token_id] >= scores.max() - 1e-4
        expected = row.double().log_softmax(-1)[token_id]
        assert reply.logprobs[place].logprob == pytest.approx(float(expected), abs=1e-3)


def test_samples_share_the_prompt_and_are_what_they_are_alone(model, tokenizer):
    prompt = tuple(tokenizer.encode("what's the weather like in Paris today? " * 4))
    sampling = Sampling(12, temperature=1.0, ignore_eos=True)
    asked = [
        Submit(i, prompt, None, dataclasses.replace(sampling, seed=i), leader=0 if i else None)
        for i in range(6)
    ]
    with OfflineEngine(model, CONFIG) as engine:
        replies = engine.generate(asked)
        counters = engine.inspect().counters
        block = engine._loop.runner.kv_block_tokens
    assert len({tuple(reply.token_ids) for reply in replies}) == 6
    shared = (len(prompt) - 1) // block * block
    assert counters["prefix_tokens_reused"] == 5 * shared
    assert counters["prefill_tokens"] == 6 * len(prompt) - 5 * shared
    if model.path.startswith("native"):  # where rows do not depend, in any bit, on their batch-mates
        alone = [generate(model, prompt, submit.sampling)[0].token_ids for submit in asked]
        assert [reply.token_ids for reply in replies] == alone


def test_the_shortest_reply_is_kept_to(model, tokenizer):
    ends = tuple((end, 100.0) for end in model.end_token_ids)
    prompt = prompt_of(tokenizer)
    for least in (0, 1, 7):
        (reply,) = generate(model, prompt, Sampling(20, logit_bias=ends, min_new_tokens=least))
        assert (reply.finish, len(reply.token_ids)) == (FinishReason.END, least)


def test_the_real_base_keeps_to_a_schema_at_a_high_temperature(smollm2_directory):
    real = load_model(smollm2_directory)
    tokenizer = BaseTokenizer.load(smollm2_directory)
    vocabulary = LLTokenizer(
        (smollm2_directory / "tokenizer.json").read_text(),
        n_vocab=real.vocabulary_tokens,
        eos_token=sorted(real.end_token_ids),
    )
    prompt = tuple(tokenizer.encode("A person as JSON:\n"))
    asked = [Sampling(64, temperature=1.7, seed=seed, grammar=JSON_GRAMMAR) for seed in range(16)]
    replies = generate(real, prompt, *asked)
    assert check_replies(replies, JSON_GRAMMAR, follows_schema, tokenizer, vocabulary) >= 4
