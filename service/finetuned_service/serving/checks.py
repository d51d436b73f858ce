"""What a ServeAdapter call may ask for, checked before anything is queued; and prompts cut to fit."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.engine.messages import Sampling
from finetuned_service.errors import InvalidField, PromptTooLong, Violation
from finetuned_service.serving.ranges import MAX_SAMPLES, violations
from finetuned_service.serving.values import GenerationSettings, JsonSchema, Regex, ServeCall, Truncation
from finetuned_service.text.grammar import json_schema_grammar, regex_grammar

DEFAULT_MAX_TOKENS = 256
MAX_INPUTS = 64
MAX_REPLIES = 64
"""Inputs times samples."""
_SAMPLE_SEEDS = MAX_INPUTS
"""Between the seeds of two samples: as many as a call has inputs, and no more than it must be, since PyTorch's
generator for CPUs looks at the lower 32 bits only."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of one input, fitted into the context."""

    token_ids: tuple[int, ...]
    truncated_tokens: int
    max_new_tokens: int


def check_call(call: ServeCall, context_tokens: int, vocabulary_tokens: int) -> None:
    """Check everything that needs no tokenizer and no grammar.

    Raises:
        InvalidField: naming every setting that is not allowed.
    """
    generation, inputs = call.generation, len(call.inputs)
    found = list(violations(generation, context_tokens, vocabulary_tokens))
    if not 1 <= inputs <= MAX_INPUTS:
        found.insert(0, Violation("inputs", f"is {inputs} inputs; allowed: 1 to {MAX_INPUTS}"))
    elif 1 <= generation.samples <= MAX_SAMPLES and inputs * generation.samples > MAX_REPLIES:
        description = (
            f"is {inputs} inputs with {generation.samples} samples each; allowed: {MAX_REPLIES} replies "
            "in one request. Send fewer inputs, or ask for fewer samples"
        )
        found.insert(0, Violation("inputs", description))
    if found:
        raise InvalidField("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def grammar_of(generation: GenerationSettings, *, drops_first_space: bool = False) -> str:
    """The constraint as the engine takes it; "" without one. `drops_first_space`: see `BaseTokenizer`.

    Raises:
        InvalidField: it cannot be kept to; see `text/grammar.py`.
    """
    match generation.constraint:
        case JsonSchema(schema):
            return json_schema_grammar(schema, "generate.json_schema")
        case Regex(pattern):
            return regex_grammar(pattern, "generate.regex", after_space=drops_first_space)
        case None:
            return ""


def fit_prompt(
    token_ids: Sequence[int],
    generation: GenerationSettings,
    context_tokens: int,
    field: str,
    closing_tokens: int = 0,
) -> Prompt:
    """Cut a prompt as the caller chose, and decide how many tokens the reply may have.

    Without a wish for the reply's length a prompt fits if it leaves one token (or `min_tokens`), and a prompt
    that is cut leaves `DEFAULT_MAX_TOKENS`, but keeps half of the context unless `min_tokens` needs more.

    Args:
        token_ids: the whole prompt.
        generation: the caller's settings.
        context_tokens: of the base.
        field: what errors name.
        closing_tokens: how many at the end stay whatever is cut: without them it is nobody's turn to answer.

    Raises:
        PromptTooLong: it does not fit and no truncation was chosen, or there is no room but for what closes it.
        InvalidField: it is empty.
    """
    if not token_ids:
        raise InvalidField.one(field, "is empty; give at least one character")
    wanted, found = generation.max_tokens, len(token_ids)
    least = wanted or max(1, generation.min_tokens or 0)
    if found > context_tokens - least:
        if generation.truncation is Truncation.REJECT:
            raise PromptTooLong(
                f"{field} has {found} tokens and the reply {wanted or f'at least {least}'}; the context "
                f"holds {context_tokens}. Shorten it, ask for fewer tokens, or choose a truncation",
                metadata={"prompt_tokens": str(found), "context_tokens": str(context_tokens)},
            )
        room = context_tokens - (wanted or max(least, min(DEFAULT_MAX_TOKENS, context_tokens // 2)))
        if room <= closing_tokens:
            raise PromptTooLong(
                f"{field} may keep {room} tokens beside the reply, and {closing_tokens} of them end the last message and "
                "begin the answer. Ask for fewer tokens",
                metadata={"prompt_tokens": str(found), "context_tokens": str(context_tokens)},
            )
        first = 0 if generation.truncation is Truncation.KEEP_START else found - room
        token_ids = [*token_ids[first : first + room - closing_tokens], *token_ids[found - closing_tokens :]]
    new_tokens = wanted or min(max(DEFAULT_MAX_TOKENS, least), context_tokens - len(token_ids))
    return Prompt(tuple(token_ids), found - len(token_ids), new_tokens)


def sampling_for(
    generation: GenerationSettings, prompt: Prompt, index: int, sample: int = 0, grammar: str = ""
) -> Sampling:
    """The engine's settings for one reply.

    Replies of one call with one seed differ by their input's index and their sample: the same call gives the
    same replies, and each of them can be had alone with the seed that is its own.
    """
    seed = generation.seed
    own = secrets.randbits(62) if seed is None else seed + index + sample * _SAMPLE_SEEDS
    return Sampling(
        max_new_tokens=prompt.max_new_tokens,
        temperature=generation.temperature,
        top_k=generation.top_k or 0,
        top_p=1.0 if generation.top_p is None else generation.top_p,
        seed=own % 2**63,
        stop_token_ids=generation.stop_token_ids,
        ignore_eos=generation.ignore_eos,
        logprobs=generation.logprobs,
        min_new_tokens=generation.min_tokens or 0,
        repetition_penalty=1.0 if generation.repetition_penalty is None else generation.repetition_penalty,
        presence_penalty=generation.presence_penalty or 0.0,
        frequency_penalty=generation.frequency_penalty or 0.0,
        logit_bias=generation.logit_bias,
        grammar=grammar,
        # A stop string is found by the RPC process, which must see each token before the next is computed.
        delta_tokens=1 if generation.stop else generation.delta_tokens or 1,
    )
