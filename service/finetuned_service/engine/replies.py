"""From logits to the tokens and the end of each sequence; and what a request must be to have one."""

from __future__ import annotations

import torch
from llguidance import LLMatcher
from torch import Tensor

from finetuned_service.engine.adjustments import Adjustments
from finetuned_service.engine.choice import TokenChoice
from finetuned_service.engine.constraint import Constraint
from finetuned_service.engine.messages import Encoded, FinishReason, Sampling, Submit, TokenLogprobs, Tokens
from finetuned_service.engine.runner import Model
from finetuned_service.engine.sampling import token_logprobs
from finetuned_service.engine.sequence import Sequence
from finetuned_service.errors import (
    AdapterIncompatible,
    FinetunedError,
    Internal,
    InvalidField,
    PromptTooLong,
    ResourceExhausted,
)


def limit_tokens(submit: Submit, model: Model, kv_capacity_tokens: int) -> int:
    """Prompt and reply together: how many tokens the sequence may reach.

    Raises:
        InvalidField: for an empty prompt, unknown token ids, a reply of no tokens or of fewer than its least.
        PromptTooLong: if the prompt leaves no room in the context.
        ResourceExhausted: if it would not fit the KV cache even alone.
    """
    if (submit.encode is not None) != model.encodes:
        raise InvalidField.one("task", f"cannot be done by this base: {model.path}")
    prompt = submit.prompt_token_ids
    if submit.encode is not None:
        return _encoded_tokens(prompt, model)
    if not prompt:
        raise InvalidField.one("prompt_token_ids", "is empty; at least one token is needed")
    if min(prompt) < 0 or max(prompt) >= model.vocabulary_tokens:
        raise InvalidField.one(
            "prompt_token_ids",
            f"has ids outside of 0 to {model.vocabulary_tokens - 1}, the base's vocabulary",
        )
    if any(not 0 <= token_id < model.vocabulary_tokens for token_id, _ in submit.sampling.logit_bias):
        raise InvalidField.one(
            "logit_bias", f"has ids outside of 0 to {model.vocabulary_tokens - 1}, the base's vocabulary"
        )
    least = max(1, submit.sampling.min_new_tokens)
    if submit.sampling.max_new_tokens < least:
        raise InvalidField.one(
            "max_new_tokens", f"is {submit.sampling.max_new_tokens}; at least {least} is needed"
        )
    if len(prompt) >= model.context_tokens:
        raise PromptTooLong(
            f"the prompt has {len(prompt)} tokens; the context of the base is {model.context_tokens} and "
            "must hold at least one more for the reply. Shorten the prompt",
            metadata={"prompt_tokens": str(len(prompt)), "context_tokens": str(model.context_tokens)},
        )
    limit = min(len(prompt) + submit.sampling.max_new_tokens, model.context_tokens)
    if limit > kv_capacity_tokens:
        raise ResourceExhausted(
            f"prompt and reply may reach {limit} tokens; the KV cache holds {kv_capacity_tokens}. "
            "Ask for fewer new tokens or raise the cache's size"
        )
    return limit


def _encoded_tokens(prompt: tuple[int, ...], model: Model) -> int:
    if not prompt or len(prompt) > model.context_tokens:
        raise PromptTooLong(
            f"the input has {len(prompt)} tokens; allowed: 1 to {model.context_tokens}",
            metadata={"prompt_tokens": str(len(prompt)), "context_tokens": str(model.context_tokens)},
        )
    if min(prompt) < 0 or max(prompt) >= model.vocabulary_tokens:
        raise InvalidField.one(
            "prompt_token_ids",
            f"has ids outside of 0 to {model.vocabulary_tokens - 1}, the base's vocabulary",
        )
    return len(prompt)


def encoded(sequence: Sequence, rows: Tensor, now_seconds: float) -> Encoded:
    """What an input became, `[rows, width]` float32, as its last event.

    Raises:
        FinetunedError: if it is not finite.
    """
    if not bool(torch.isfinite(rows).all()):
        raise _not_finite(sequence)
    data = rows.contiguous().numpy().tobytes()
    return Encoded(sequence.request_id, data, rows.shape[1], now_seconds - sequence.admitted_seconds)


class Replies:
    """Chooses tokens and tells ends. Holds the choices of sequences that are not plainly greedy."""

    def __init__(self, end_token_ids: frozenset[int], device: torch.device) -> None:
        self._end_token_ids = end_token_ids
        self._device = device
        self._choices: dict[int, TokenChoice] = {}

    def begin(self, sequence: Sequence, matcher: LLMatcher | None = None) -> None:
        """A sequence that will have tokens to choose; `matcher` is its grammar's, if it has one."""
        if matcher is not None or _is_special(sequence.request.sampling):
            constraint = None if matcher is None else Constraint(matcher, self._end_token_ids)
            self._choices[sequence.request_id] = TokenChoice(
                sequence.request, self._end_token_ids, self._device, constraint
            )

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        self._choices.pop(sequence.request_id, None)

    def extend(self, sequence: Sequence, logits: Tensor, greedy: int | None, now_seconds: float) -> Tokens:
        """Choose the sequence's next token from `logits [vocabulary]` and append it, or end the sequence.

        Raises:
            FinetunedError: if the logits are not finite, or its grammar cannot be followed.
        """
        if greedy is None:
            raise _not_finite(sequence)
        sampling = sequence.request.sampling
        choice = self._choices.get(sequence.request_id)
        token_id = greedy if choice is None else choice.choose(logits)
        is_first = sequence.first_token_seconds is None
        first_seconds = sequence.first_token_seconds or now_seconds
        sequence.first_token_seconds = first_seconds
        token_ids: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] = ()
        finish: FinishReason | None = None
        if token_id in sampling.stop_token_ids:
            finish = FinishReason.STOP
        elif token_id is None or (token_id in self._end_token_ids and not sampling.ignore_eos):
            finish = FinishReason.END
        else:
            if choice is not None:
                choice.took(token_id)
            sequence.tokens.append(token_id)
            token_ids = (token_id,)
            if sampling.logprobs:
                logprobs = (token_logprobs(logits, token_id, sampling.logprobs),)
            if choice is not None and choice.complete:
                finish = FinishReason.END
            elif len(sequence.tokens) == sequence.limit_tokens:
                finish = FinishReason.LENGTH
        return Tokens(
            sequence.request_id,
            token_ids,
            logprobs,
            finish,
            cached_tokens=sequence.cached_tokens if is_first else 0,
            prefill_seconds=first_seconds - sequence.admitted_seconds if is_first else 0.0,
            decode_seconds=now_seconds - first_seconds if finish else 0.0,
        )


def _is_special(sampling: Sampling) -> bool:
    return sampling.temperature != 0.0 or Adjustments.wanted(sampling)


def _not_finite(sequence: Sequence) -> FinetunedError:
    if sequence.adapter is None:
        return Internal.opaque()
    return AdapterIncompatible(
        f"with adapter {sequence.adapter.digest} the base computes values that are not finite; "
        "train it again with a smaller learning rate or alpha",
        metadata={"adapter_digest": sequence.adapter.digest},
    )
