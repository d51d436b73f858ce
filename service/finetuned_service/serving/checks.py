"""What a ServeAdapter call may ask for, checked before anything is queued; and prompts cut to fit."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.engine.messages import Sampling
from finetuned_service.errors import InvalidField, PromptTooLong, Violation
from finetuned_service.serving.values import GenerationSettings, ServeCall, Truncation

DEFAULT_MAX_TOKENS = 256
MAX_TEMPERATURE = 10.0
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_INPUTS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of one input, fitted into the context."""

    token_ids: tuple[int, ...]
    truncated_tokens: int
    max_new_tokens: int


def check_call(call: ServeCall, context_tokens: int) -> None:
    """Check everything that needs no tokenizer.

    Raises:
        InvalidField: naming every setting that is not allowed.
    """
    generation = call.generation
    found: list[Violation] = []

    def require(allowed: bool, field: str, value: object, rule: str) -> None:  # noqa: FBT001 - a predicate
        if not allowed:
            found.append(Violation(field, f"is {value}; allowed: {rule}"))

    inputs = len(call.inputs)
    require(1 <= inputs <= MAX_INPUTS, "inputs", f"{inputs} inputs", f"1 to {MAX_INPUTS}")
    tokens = generation.max_tokens
    if tokens is not None:
        require(1 <= tokens < context_tokens, "generate.max_tokens", tokens, f"1 to {context_tokens - 1}")
    temperature = generation.temperature
    require(
        math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE,
        "generate.temperature",
        temperature,
        f"0 (greedy) to {MAX_TEMPERATURE:g}",
    )
    if generation.top_k is not None:
        require(generation.top_k >= 1, "generate.top_k", generation.top_k, "at least 1, or unset")
    if generation.top_p is not None:
        require(0 < generation.top_p <= 1, "generate.top_p", generation.top_p, "above 0 to 1")
    if generation.seed is not None:
        require(0 <= generation.seed < 2**63, "generate.seed", generation.seed, "0 to 2**63 - 1")
    stops = generation.stop
    require(
        len(stops) <= MAX_STOP_STRINGS, "generate.stop", f"{len(stops)} strings", f"up to {MAX_STOP_STRINGS}"
    )
    for i, stop in enumerate(stops):
        length = len(stop)
        rule = f"1 to {MAX_STOP_CHARACTERS} characters"
        require(1 <= length <= MAX_STOP_CHARACTERS, f"generate.stop[{i}]", f"{length} characters", rule)
    ids = generation.stop_token_ids
    rule = f"up to {MAX_STOP_TOKENS} ids, none negative"
    require(
        len(ids) <= MAX_STOP_TOKENS and min(ids, default=0) >= 0, "generate.stop_token_ids", list(ids), rule
    )
    require(
        0 <= generation.logprobs <= MAX_LOGPROBS,
        "generate.logprobs",
        generation.logprobs,
        f"0 to {MAX_LOGPROBS}",
    )
    if found:
        raise InvalidField("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def fit_prompt(
    token_ids: Sequence[int], generation: GenerationSettings, context_tokens: int, field: str
) -> Prompt:
    """Cut a prompt as the caller chose, and decide how many tokens the reply may have.

    Without a wish for the reply's length a prompt fits if it leaves one token, and a prompt that is cut
    leaves `DEFAULT_MAX_TOKENS`, but keeps at least half of the context.

    Raises:
        PromptTooLong: it does not fit and no truncation was chosen.
        InvalidField: it is empty.
    """
    if not token_ids:
        raise InvalidField.one(field, "is empty; give at least one character")
    wanted, found = generation.max_tokens, len(token_ids)
    if found > context_tokens - (wanted or 1):
        if generation.truncation is Truncation.REJECT:
            raise PromptTooLong(
                f"{field} has {found} tokens and the reply {wanted or 'at least 1'}; the context holds "
                f"{context_tokens}. Shorten it, ask for fewer max_tokens, or choose a truncation",
                metadata={"prompt_tokens": str(found), "context_tokens": str(context_tokens)},
            )
        room = context_tokens - (wanted or min(DEFAULT_MAX_TOKENS, context_tokens // 2))
        from_end = generation.truncation is Truncation.KEEP_END
        token_ids = token_ids[found - room :] if from_end else token_ids[:room]
    new_tokens = wanted or min(DEFAULT_MAX_TOKENS, context_tokens - len(token_ids))
    return Prompt(tuple(token_ids), found - len(token_ids), new_tokens)


def sampling_for(generation: GenerationSettings, prompt: Prompt, index: int) -> Sampling:
    """The engine's settings for one input; inputs of one call with one seed differ by their index."""
    seed = secrets.randbits(62) if generation.seed is None else generation.seed + index
    return Sampling(
        max_new_tokens=prompt.max_new_tokens,
        temperature=generation.temperature,
        top_k=generation.top_k or 0,
        top_p=1.0 if generation.top_p is None else generation.top_p,
        seed=seed % 2**63,
        stop_token_ids=generation.stop_token_ids,
        ignore_eos=generation.ignore_eos,
        logprobs=generation.logprobs,
    )
