"""How one request chooses its tokens, unless it simply takes the most likely one."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from finetuned_service.engine.adjustments import Adjustments
from finetuned_service.engine.constraint import Constraint
from finetuned_service.engine.messages import Submit
from finetuned_service.engine.sampling import make_generator, uniform_number


@final
class TokenChoice:
    """Adjusts the logits and keeps to the grammar; holds what of that goes on from token to token."""

    def __init__(
        self,
        request: Submit,
        end_token_ids: frozenset[int],
        device: torch.device,
        constraint: Constraint | None = None,
    ) -> None:
        """Args: end_token_ids: the base's; device: of the logits; constraint: at its beginning."""
        self._sampling = request.sampling
        wanted = Adjustments.wanted(request.sampling)
        self._adjustments = Adjustments(request, end_token_ids, device) if wanted else None
        self._constraint = constraint
        self._generator = make_generator(request.sampling)

    @property
    def complete(self) -> bool:
        """The reply is over: its grammar allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    @property
    def drawn(self) -> bool:
        """By a number (`uniform`), instead of the most likely one."""
        return self._generator is not None

    def uniform(self) -> float:
        """The next number of `[0, 1)` that a token is drawn by."""
        assert self._generator is not None, "greedy"
        return uniform_number(self._generator)

    def scores(self, logits: Tensor) -> Tensor | None:
        """Finite `logits [vocabulary]` as the request adjusts them and its grammar allows, in float32 then; the logits
        themselves stay as they are. None if the reply is over, also because all that its grammar allows next are stop
        tokens, and it is too early for those.

        Raises:
            FinetunedError: if the grammar cannot be followed.
        """
        if self._adjustments is None and self._constraint is None:
            return logits
        scores = logits.to(torch.float32, copy=True)
        early = self._adjustments is not None and self._adjustments.too_early
        if self._adjustments is not None:
            self._adjustments.apply(scores)
        if self._constraint is not None and not self._constraint.apply(
            scores, may_end=not (early or self._sampling.ignore_eos)
        ):
            return None
        if early and bool(scores.max() == -torch.inf):
            return None
        return scores

    def took(self, token_id: int) -> None:
        """The reply goes on with a token.

        Raises:
            FinetunedError: if the grammar cannot be followed.
        """
        if self._adjustments is not None:
            self._adjustments.took(token_id)
        if self._constraint is not None:
            self._constraint.took(token_id)
