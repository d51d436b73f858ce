"""The ranges of the settings of text generation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from finetuned_service.errors import Violation
from finetuned_service.serving.values import GenerationSettings

MAX_TEMPERATURE = 10.0
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_SAMPLES = 16
MAX_REPETITION_PENALTY = 10.0
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_DELTA_TOKENS = 2**20
"""More than any reply has: all of it after the first token is one delta."""


class _Rule(NamedTuple):
    allowed: bool
    field: str
    found: object
    rule: str


def violations(
    generation: GenerationSettings, context_tokens: int, vocabulary_tokens: int
) -> Iterator[Violation]:
    """Every setting that is out of its range: what was found and what is allowed."""
    rules = (*_length(generation, context_tokens), *_draws(generation), *_penalties(generation))
    for rule in (*rules, *_tokens(generation, vocabulary_tokens)):
        if not rule.allowed:
            yield Violation(f"generate.{rule.field}", f"is {rule.found}; allowed: {rule.rule}")


def _length(generation: GenerationSettings, context_tokens: int) -> Iterator[_Rule]:
    tokens, least = generation.max_tokens, generation.min_tokens
    if tokens is not None:
        yield _Rule(1 <= tokens < context_tokens, "max_tokens", tokens, f"1 to {context_tokens - 1}")
    if least is not None:
        most = context_tokens - 1 if tokens is None else tokens
        name = f"{most}, the context less one token" if tokens is None else f"max_tokens ({most})"
        yield _Rule(0 <= least <= most, "min_tokens", least, f"0 to {name}")
    if generation.delta_tokens is not None:
        allowed = 1 <= generation.delta_tokens <= MAX_DELTA_TOKENS
        yield _Rule(allowed, "delta_tokens", generation.delta_tokens, f"1 to {MAX_DELTA_TOKENS}")


def _draws(generation: GenerationSettings) -> Iterator[_Rule]:
    temperature, samples = generation.temperature, generation.samples
    is_temperature = math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE
    yield _Rule(is_temperature, "temperature", temperature, f"0 (greedy) to {MAX_TEMPERATURE:g}")
    if generation.top_k is not None:
        yield _Rule(generation.top_k >= 1, "top_k", generation.top_k, "at least 1, or unset")
    if generation.top_p is not None:
        yield _Rule(0 < generation.top_p <= 1, "top_p", generation.top_p, "above 0 to 1")
    if generation.seed is not None:
        yield _Rule(0 <= generation.seed < 2**63, "seed", generation.seed, "0 to 2**63 - 1")
    yield _Rule(1 <= samples <= MAX_SAMPLES, "n", samples, f"1 to {MAX_SAMPLES}")
    if 1 < samples <= MAX_SAMPLES:
        found = f"{samples} at temperature 0, where all samples are the same"
        yield _Rule(temperature != 0, "n", found, "1, or a temperature above 0")


def _penalties(generation: GenerationSettings) -> Iterator[_Rule]:
    repetition = generation.repetition_penalty
    if repetition is not None:
        rule = f"above 0 to {MAX_REPETITION_PENALTY:g}"
        yield _Rule(0 < repetition <= MAX_REPETITION_PENALTY, "repetition_penalty", repetition, rule)
    for field in ("presence_penalty", "frequency_penalty"):
        penalty: float | None = getattr(generation, field)
        if penalty is not None:
            rule = f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}"
            yield _Rule(-MAX_PENALTY <= penalty <= MAX_PENALTY, field, penalty, rule)


def _tokens(generation: GenerationSettings, vocabulary_tokens: int) -> Iterator[_Rule]:
    stops, logprobs = generation.stop, generation.logprobs
    yield _Rule(len(stops) <= MAX_STOP_STRINGS, "stop", f"{len(stops)} strings", f"up to {MAX_STOP_STRINGS}")
    for i, stop in enumerate(stops):
        rule = f"1 to {MAX_STOP_CHARACTERS} characters"
        yield _Rule(1 <= len(stop) <= MAX_STOP_CHARACTERS, f"stop[{i}]", f"{len(stop)} characters", rule)
    ids, vocabulary = generation.stop_token_ids, range(vocabulary_tokens)
    rule = f"up to {MAX_STOP_TOKENS} ids of 0 to {vocabulary_tokens - 1}"
    known = all(token_id in vocabulary for token_id in ids)
    yield _Rule(len(ids) <= MAX_STOP_TOKENS and known, "stop_token_ids", list(ids), rule)
    yield _Rule(0 <= logprobs <= MAX_LOGPROBS, "logprobs", logprobs, f"0 to {MAX_LOGPROBS}")
    biases = generation.logit_bias
    rule = f"up to {MAX_BIASED_TOKENS}"
    yield _Rule(len(biases) <= MAX_BIASED_TOKENS, "logit_bias", f"{len(biases)} entries", rule)
    for token_id, bias in biases[:MAX_BIASED_TOKENS]:
        rule = f"ids of 0 to {vocabulary_tokens - 1}, the base's vocabulary"
        yield _Rule(token_id in vocabulary, f"logit_bias[{token_id}]", "for an unknown token", rule)
        rule = f"{-MAX_BIAS:g} to {MAX_BIAS:g}"
        yield _Rule(-MAX_BIAS <= bias <= MAX_BIAS, f"logit_bias[{token_id}]", bias, rule)
