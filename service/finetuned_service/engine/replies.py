"""From logits to the tokens and the end of each sequence; and what a request must be to have one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from finetuned_service.engine.messages import Encoded, FinishReason, Submit, Tokens
from finetuned_service.engine.runner import Model
from finetuned_service.engine.sampling import draw_token, greedy_tokens, make_generator, token_logprobs
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
        InvalidField: for an empty prompt, unknown token ids or a reply of no tokens.
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
    if submit.sampling.max_new_tokens < 1:
        raise InvalidField.one("max_new_tokens", f"is {submit.sampling.max_new_tokens}; at least 1 is needed")
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
    """Chooses tokens and tells ends. Holds the generators of sampling sequences."""

    def __init__(self, end_token_ids: frozenset[int], device: torch.device) -> None:
        self._end_token_ids = end_token_ids
        self._device = device
        self._generators: dict[int, torch.Generator] = {}

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        self._generators.pop(sequence.request_id, None)

    def greedy(self, logits: Tensor) -> list[int | None]:
        """See `sampling.greedy_tokens`."""
        return greedy_tokens(logits)

    def extend(self, sequence: Sequence, logits: Tensor, greedy: int | None, now_seconds: float) -> Tokens:
        """Choose the sequence's next token from `logits [vocabulary]` and append it, or end the sequence.

        Raises:
            FinetunedError: if the logits are not finite; the sequence is unchanged.
        """
        if greedy is None:
            raise _not_finite(sequence)
        sampling = sequence.request.sampling
        token_id = greedy
        generator = self._generator(sequence)
        if generator is not None:
            token_id = draw_token(logits, sampling, generator)
        logprobs = (token_logprobs(logits, token_id, sampling.logprobs),) if sampling.logprobs else ()
        if sequence.first_token_seconds is None:
            sequence.first_token_seconds = now_seconds
        if token_id in sampling.stop_token_ids:
            return _last(sequence, FinishReason.STOP, now_seconds)
        if token_id in self._end_token_ids and not sampling.ignore_eos:
            return _last(sequence, FinishReason.END, now_seconds)
        sequence.tokens.append(token_id)
        if len(sequence.tokens) == sequence.limit_tokens:
            last = _last(sequence, FinishReason.LENGTH, now_seconds)
            return replace(last, token_ids=(token_id,), logprobs=logprobs)
        return Tokens(sequence.request_id, (token_id,), logprobs, cached_tokens=_cached(sequence))

    def _generator(self, sequence: Sequence) -> torch.Generator | None:
        generator = self._generators.get(sequence.request_id)
        if generator is None:
            generator = make_generator(sequence.request.sampling, self._device)
            if generator is not None:
                self._generators[sequence.request_id] = generator
        return generator


def _cached(sequence: Sequence) -> int:
    """Told once, with the first token."""
    return sequence.cached_tokens if sequence.new_tokens <= 1 else 0


def _last(sequence: Sequence, finish: FinishReason, now_seconds: float) -> Tokens:
    first_seconds = sequence.first_token_seconds or now_seconds
    return Tokens(
        sequence.request_id,
        (),
        finish=finish,
        cached_tokens=_cached(sequence),
        prefill_seconds=first_seconds - sequence.admitted_seconds,
        decode_seconds=now_seconds - first_seconds,
    )


def _not_finite(sequence: Sequence) -> FinetunedError:
    if sequence.adapter is None:
        return Internal.opaque()
    return AdapterIncompatible(
        f"with adapter {sequence.adapter.digest} the base computes values that are not finite; "
        "train it again with a smaller learning rate or alpha",
        metadata={"adapter_digest": sequence.adapter.digest},
    )
