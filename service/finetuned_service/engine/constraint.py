"""The grammar of one reply, and how far in it the reply is."""

from __future__ import annotations

import time
from typing import Any, final

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from finetuned_service.errors import FinetunedError, InvalidField, Unimplemented

_MASK_SECONDS = 0.1
"""Of processor time for the tokens allowed at one position; the others' steps wait for it."""


@final
class Constraint:
    """Forbids every token that the grammar does not allow next."""

    def __init__(self, matcher: LLMatcher, end_token_ids: frozenset[int]) -> None:
        """Takes over `matcher`, at the beginning of the reply; `end_token_ids` are those it was made with."""
        self._matcher = matcher
        self._end_ids = sorted(end_token_ids)

    @property
    def complete(self) -> bool:
        """The grammar allows nothing more."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def apply(self, scores: Tensor, *, may_end: bool) -> bool:
        """Forbid in `scores [vocabulary]` float32, in place; False if all that is left is to end.

        Args:
            scores: of the next token.
            may_end: end tokens are allowed where the grammar allows them, and not only where nothing else is.

        Raises:
            InvalidField: the grammar has become too complex to follow.
            Unimplemented: it goes on with what no token of the base can write.
        """
        if self.complete:
            return False
        began = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error() or time.thread_time() - began > _MASK_SECONDS:
            raise _too_complex()
        allowed: Any = np.unpackbits(bits, bitorder="little", count=scores.shape[0]).astype(bool)
        others = allowed.copy()
        others[[token_id for token_id in self._end_ids if token_id < len(others)]] = False
        if not others.any():
            if not allowed.any():
                raise Unimplemented.feature(
                    "a constraint that goes on with characters no token of this base can write",
                    "constraints in the characters of its vocabulary",
                )
            return False
        forbidden = torch.from_numpy(~(allowed if may_end else others)).to(scores.device)
        scores.masked_fill_(forbidden, -torch.inf)
        return True

    def took(self, token_id: int) -> None:
        """The reply goes on with a token, one that was allowed.

        Raises:
            InvalidField: the grammar has become too complex to follow.
        """
        if not self._matcher.consume_token(token_id):
            raise _too_complex()


def _too_complex() -> FinetunedError:
    return InvalidField.one(
        "generate.constraint",
        "became too complex while the reply was written; use fewer or smaller repetitions and alternatives",
    )
