"""Which token comes next in each sequence of a step."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import final

import torch
from llguidance import LLMatcher
from torch import Tensor

from finetuned_service.engine.adjustments import Adjustments
from finetuned_service.engine.choice import TokenChoice
from finetuned_service.engine.constraint import Constraint
from finetuned_service.engine.messages import Sampling, TokenLogprobs
from finetuned_service.engine.runner import StepLogits
from finetuned_service.engine.sampling import tokens_logprobs
from finetuned_service.engine.sequence import Sequence
from finetuned_service.errors import AdapterIncompatible, FinetunedError, Internal


@dataclass(slots=True)
class ChosenToken:
    """What comes next in one sequence."""

    token_id: int | None
    """None: the reply is over."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """The token's, if they were asked for."""


DrawFunction = Callable[[Rows[Tensor], Rows[Sampling], Rows[float]], list[int]]
"""See `runner.Runner.draw`."""
Chosen = ChosenToken | Exception
"""An exception where one sequence alone fails."""


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """One token that is to be drawn."""

    scores: Tensor
    """`[vocabulary]`"""
    sampling: Sampling
    uniform: float


@final
class Choices:
    """Chooses the tokens of a step together; holds what sequences need for it that are not plainly greedy."""

    def __init__(self, end_token_ids: frozenset[int], device: torch.device, draw: DrawFunction) -> None:
        """Args: end_token_ids: the base's; device: of the logits; draw: a runner's."""
        self._end_token_ids = end_token_ids
        self._device = device
        self._draw_tokens = draw
        self._special: dict[int, TokenChoice] = {}

    def begin(self, sequence: Sequence, matcher: LLMatcher | None) -> None:
        """A sequence that will have tokens to choose; `matcher` is its grammar's, if it has one."""
        if matcher is not None or _is_special(sequence.request.sampling):
            constraint = None if matcher is None else Constraint(matcher, self._end_token_ids)
            self._special[sequence.request_id] = TokenChoice(
                sequence.request, self._end_token_ids, self._device, constraint
            )

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        self._special.pop(sequence.request_id, None)

    def find(self, sequence: Sequence) -> TokenChoice | None:
        """None if it is plainly greedy."""
        return self._special.get(sequence.request_id)

    def choose(self, step: StepLogits) -> list[Chosen]:
        """What comes next in each of `step.chosen`. A row that fails does so alone."""
        chosen: list[Chosen] = [
            not_finite(sequence) if greedy is None else ChosenToken(greedy)
            for sequence, greedy in zip(step.chosen, step.greedy, strict=True)
        ]
        self._draw(step, chosen)
        self._add_logprobs(step, chosen)
        return chosen

    def _draw(self, step: StepLogits, chosen: list[Chosen]) -> None:
        drawn: dict[int, _Draw] = {}
        for row, sequence in enumerate(step.chosen):
            choice = self.find(sequence)
            if choice is None or isinstance(chosen[row], Exception):
                continue
            try:
                scores = choice.scores(step.logits[row])
                if scores is None:
                    chosen[row] = ChosenToken(None)
                elif choice.drawn:
                    drawn[row] = _Draw(scores, sequence.request.sampling, choice.uniform())
                else:
                    chosen[row] = ChosenToken(int(scores.argmax()))
            except Exception as error:  # noqa: BLE001 - a row that cannot be adjusted fails alone
                chosen[row] = error

        def draw(rows: list[int]) -> None:
            some = [drawn[row] for row in rows]
            tokens = self._draw_tokens(
                [one.scores for one in some],
                [one.sampling for one in some],
                [one.uniform for one in some],
            )
            for row, token_id in zip(rows, tokens, strict=True):
                chosen[row] = ChosenToken(token_id)

        _together(list(drawn), draw, chosen.__setitem__)

    def _add_logprobs(self, step: StepLogits, chosen: list[Chosen]) -> None:
        # By how many are asked for: which of equal ones come first may depend on it.
        wanted: dict[int, list[int]] = {}
        for row, sequence in enumerate(step.chosen):
            token = chosen[row]
            if isinstance(token, ChosenToken) and token.token_id is not None:
                wanted.setdefault(sequence.request.sampling.logprobs, []).append(row)

        def add(rows: list[int], top: int) -> None:
            tokens = [token for row in rows if isinstance(token := chosen[row], ChosenToken)]
            token_ids = [token.token_id or 0 for token in tokens]
            for token, told in zip(tokens, tokens_logprobs(step.logits[rows], token_ids, top), strict=True):
                token.logprobs = (told,)

        for top, rows in wanted.items():
            if top:
                _together(rows, lambda some, top=top: add(some, top), chosen.__setitem__)


def not_finite(sequence: Sequence) -> FinetunedError:
    """What is said of a sequence whose values are not finite."""
    if sequence.adapter is None:
        return Internal.opaque()
    return AdapterIncompatible(
        f"with adapter {sequence.adapter.digest} the base computes values that are not finite; "
        "train it again with a smaller learning rate or alpha",
        metadata={"adapter_digest": sequence.adapter.digest},
    )


def _together(
    rows: list[int], compute: Callable[[list[int]], None], failed: Callable[[int, Exception], None]
) -> None:
    """All rows at once; each alone if that fails, since nobody knows whose fault it was."""
    if not rows:
        return
    try:
        compute(rows)
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 - who is at fault fails alone
        if len(rows) == 1:
            failed(rows[0], error)
            return
    else:
        return
    # Outside: the error holds what was in memory.
    for row in rows:
        _together([row], compute, failed)


def _is_special(sampling: Sampling) -> bool:
    return sampling.temperature != 0.0 or Adjustments.wanted(sampling)
