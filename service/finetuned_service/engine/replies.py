"""From logits to the tokens and the end of each sequence; and what a request must be to have one."""

from __future__ import annotations

import torch
from llguidance import LLMatcher
from torch import Tensor

from finetuned_service.engine.choices import Choices, Chosen, DrawFunction, not_finite
from finetuned_service.engine.messages import Encoded, FinishReason, Submit, TokenLogprobs, Tokens
from finetuned_service.engine.runner import Model, StepLogits
from finetuned_service.engine.sequence import Sequence
from finetuned_service.errors import InvalidField, PromptTooLong, ResourceExhausted


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
        raise not_finite(sequence)
    data = rows.contiguous().numpy().tobytes()
    return Encoded(sequence.request_id, data, rows.shape[1], now_seconds - sequence.admitted_seconds)


class Replies:
    """Appends the chosen tokens and tells ends."""

    def __init__(self, end_token_ids: frozenset[int], device: torch.device, draw: DrawFunction) -> None:
        """Arguments as of `Choices`."""
        self._end_token_ids = end_token_ids
        self._choices = Choices(end_token_ids, device, draw)

    def begin(self, sequence: Sequence, matcher: LLMatcher | None = None) -> None:
        """A sequence that will have tokens to choose; `matcher` is its grammar's, if it has one."""
        self._choices.begin(sequence, matcher)

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        self._choices.forget(sequence)

    def choose(self, step: StepLogits) -> list[Chosen]:
        """What comes next in each of `step.chosen`; all that are drawn in one go."""
        return self._choices.choose(step)

    def extend(self, sequence: Sequence, chosen: Chosen, now_seconds: float) -> Tokens:
        """Append to the sequence what was chosen, or end the sequence.

        Raises:
            FinetunedError: if the logits were not finite, or its grammar cannot be followed.
            Exception: what else went wrong with this row alone.
        """
        if isinstance(chosen, Exception):
            raise chosen
        sampling, token_id = sequence.request.sampling, chosen.token_id
        choice = self._choices.find(sequence)
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
            logprobs = chosen.logprobs
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
