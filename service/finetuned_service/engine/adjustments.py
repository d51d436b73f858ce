"""What a request does to its logits before a token is chosen: bias, penalties, no end too early."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from finetuned_service.engine.draws import LEAST_DIVISOR
from finetuned_service.engine.messages import Sampling, Submit


@final
class Adjustments:
    """Those of one sequence; costs what the tokens it names and has seen cost, never the vocabulary.

    In this order: logit bias, repetition penalty (https://arxiv.org/abs/1909.05858, as transformers'
    RepetitionPenaltyLogitsProcessor), frequency and presence penalty (as OpenAI's API defines them, over the
    reply), then the tokens that would end the reply too early.
    """

    def __init__(self, request: Submit, end_token_ids: frozenset[int], device: torch.device) -> None:
        """Args: end_token_ids: the base's; device: of the logits."""
        sampling = request.sampling
        self._sampling = sampling
        ids = [token_id for token_id, _ in sampling.logit_bias]
        self._bias_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        self._bias = torch.tensor([bias for _, bias in sampling.logit_bias], device=device)
        ends = frozenset() if sampling.ignore_eos else end_token_ids
        self._ends = sorted(ends.union(sampling.stop_token_ids)) if sampling.min_new_tokens else []
        self._new_tokens = 0
        prompt = dict.fromkeys(request.prompt_token_ids) if sampling.repetition_penalty != 1.0 else {}
        self._place = {token_id: place for place, token_id in enumerate(prompt)}
        room = len(prompt) + sampling.max_new_tokens if self._penalizes else 0
        self._seen = torch.zeros(room, dtype=torch.int64, device=device)
        self._seen[: len(prompt)] = torch.tensor(list(prompt), dtype=torch.int64, device=device)
        self._counts = torch.zeros(room, device=device)

    @staticmethod
    def wanted(sampling: Sampling) -> bool:
        """Whether a request changes its logits at all."""
        return bool(
            sampling.logit_bias
            or sampling.min_new_tokens
            or sampling.repetition_penalty != 1.0
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )

    @property
    def too_early(self) -> bool:
        """The reply may not end yet."""
        return self._new_tokens < self._sampling.min_new_tokens

    def apply(self, scores: Tensor) -> None:
        """Change `scores [vocabulary]` float32 in place, for the next token."""
        if self._bias_ids.numel():
            scores.index_add_(0, self._bias_ids, self._bias)
        if self._place:
            self._penalize(scores)
        if self.too_early:
            scores[[token_id for token_id in self._ends if token_id < scores.shape[0]]] = -torch.inf

    def took(self, token_id: int) -> None:
        """The reply has one more token."""
        self._new_tokens += 1
        if self._penalizes:
            place = self._place.setdefault(token_id, len(self._place))
            self._seen[place] = token_id
            self._counts[place] += 1.0

    @property
    def _penalizes(self) -> bool:
        sampling = self._sampling
        return bool(
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        )

    def _penalize(self, scores: Tensor) -> None:
        sampling = self._sampling
        seen, counts = self._seen[: len(self._place)], self._counts[: len(self._place)]
        found = scores[seen]
        # Not the tiniest: what is divided by it must stay finite.
        if (penalty := max(sampling.repetition_penalty, LEAST_DIVISOR)) != 1.0:
            found = torch.where(found < 0, found * penalty, found / penalty)
        scores[seen] = (
            found - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0).float()
        )
