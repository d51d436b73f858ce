"""Draws of tokens: all rows of a step at once, and each as if it were alone.

Temperature, then top-k, then top-p, as transformers' warpers do it (https://arxiv.org/abs/1904.09751 for top-p); then the
token in whose share of the distribution, in the order of the ids, a row's own uniform number falls. Every operation is one
along the rows, so that a row's token depends on its numbers alone and not on how many others are drawn beside it. The
native path does the same in `native/source/draws.h`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuned_service.engine.messages import Sampling

LEAST_DIVISOR = 1e-6
"""Of logits. A temperature below draws the most likely token all the same, and what logits are divided by must not make
them infinite."""
NONE = -1
"""Drawn from what is no distribution."""
_UNKNOWN = -2
_CANDIDATES = (64, 1024)
"""Where top-k and top-p look first: ordering a whole vocabulary costs milliseconds a row, and is rarely needed."""


def draw_tokens(logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> list[int]:
    """A token for each row of `logits [rows, vocabulary]`.

    Args:
        logits: of each row the highest is finite; what must not be drawn is -inf.
        samplings: of each row, with a temperature above 0.
        uniforms: of each row a number of `[0, 1)`, evenly distributed.

    Raises:
        ValueError: a row is no distribution.
    """
    divisors = [max(sampling.temperature, LEAST_DIVISOR) for sampling in samplings]
    scores = logits.float() / torch.tensor(divisors, device=logits.device)[:, None]
    drawing = _Drawing(
        scores,
        scores.softmax(dim=-1),
        torch.tensor([sampling.top_k for sampling in samplings], device=logits.device),
        torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64, device=logits.device),
        torch.tensor(uniforms, dtype=torch.float64, device=logits.device),
    )
    tokens = [0] * len(samplings)
    whole = [row for row, sampling in enumerate(samplings) if not sampling.top_k and sampling.top_p >= 1.0]
    if whole:
        for row, token_id in zip(whole, drawing.of_rows(whole).from_all(), strict=True):
            tokens[row] = token_id
    left = sorted(set(range(len(samplings))).difference(whole))
    for candidates in (*_CANDIDATES, logits.shape[1]):
        if not left:
            break
        found = drawing.of_rows(left).from_highest(candidates)
        for row, token_id in zip(left, found, strict=True):
            if token_id is not None:
                tokens[row] = token_id
        left = [row for row, token_id in zip(left, found, strict=True) if token_id is None]
    refuse_none_drawn(tokens)
    return tokens


def refuse_none_drawn(tokens: Sequence[int]) -> None:
    """Raise where a row drew `NONE`.

    Raises:
        ValueError: it is no distribution.
    """
    if NONE in tokens:
        raise ValueError("scores over a temperature that are no distribution")


@dataclass(frozen=True, slots=True, eq=False)
class _Drawing:
    """Some rows: what each is drawn from, and by which number."""

    scores: Tensor
    """`[rows, vocabulary]` float32: logits over the temperature."""
    probabilities: Tensor
    """`[rows, vocabulary]` float32."""
    top_k: Tensor
    """`[rows]` int64; 0 keeps all."""
    top_p: Tensor
    """`[rows]` float64."""
    uniforms: Tensor
    """`[rows]` float64."""

    def of_rows(self, rows: list[int]) -> _Drawing:
        if len(rows) == self.scores.shape[0]:
            return self
        parts = (self.scores, self.probabilities, self.top_k, self.top_p, self.uniforms)
        return _Drawing(*(part[rows] for part in parts))

    def from_all(self) -> list[int]:
        """Drawn from the whole vocabulary, in the order of its ids."""
        # In float64: the many rare tokens must not be lost in the sum of those before them.
        told: list[int] = _places(
            self.probabilities.cumsum(dim=-1, dtype=torch.float64), self.uniforms
        ).tolist()
        return told

    def from_highest(self, candidates: int) -> list[int | None]:
        """Drawn from what top-k and top-p keep, in the order of the ids.

        Args:
            candidates: how many of the highest scores are looked at; None comes of a row that may keep others as well.
        """
        values, ids, complete = self._highest(candidates)
        # All that tie with the k-th stay, as in transformers' TopKLogitsWarper.
        last = (self.top_k - 1).clamp(0, values.shape[1] - 1)
        kth = values.gather(-1, last[:, None])
        limits_k = (self.top_k > 0)[:, None]
        shares = self.probabilities.gather(-1, ids).double().masked_fill_(limits_k & (values < kth), 0.0)
        cumulative = shares.cumsum(dim=-1)
        # Of 1 where there is no top-k: the share of the whole vocabulary.
        mass = torch.where(limits_k, cumulative[:, -1:], 1.0) * self.top_p[:, None]
        known = torch.where(limits_k, values[:, -1:] < kth, cumulative[:, -1:] >= mass)[:, 0]
        known |= values[:, -1].isneginf() | complete  # nothing else can be drawn
        # A token stays while those before it have less than top_p in sum; the first always stays.
        beyond = cumulative - shares >= mass
        beyond[:, 0] = False
        ids, order = ids.sort(dim=-1)
        shares = shares.masked_fill_(beyond, 0.0).gather(-1, order)
        places = _places(shares.cumsum(dim=-1), self.uniforms)
        drawn = ids.gather(-1, places.clamp(min=0)[:, None])[:, 0].masked_fill_(places == NONE, NONE)
        told: list[int] = drawn.masked_fill_(~known, _UNKNOWN).tolist()
        return [None if token_id == _UNKNOWN else token_id for token_id in told]

    def _highest(self, candidates: int) -> tuple[Tensor, Tensor, bool]:
        """Scores and ids `[rows, candidates]`, descending; whether that is the whole vocabulary."""
        if candidates >= self.scores.shape[1]:
            values, ids = self.scores.sort(dim=-1, descending=True, stable=True)
            return values, ids, True
        values, ids = self.scores.topk(candidates, dim=-1)
        return values, ids, False


def _places(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """For each row of `cumulative [rows, n]` the first place whose sum is above the row's share of the last one; NONE if that
    is not a number above 0: on a GPU an index out of range would end the process with all its streams.
    """
    total = cumulative[:, -1]
    # A product may be rounded up to the total, which no sum is above.
    wanted = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    places = torch.searchsorted(cumulative, wanted[:, None], right=True)[:, 0]
    return places.masked_fill_(~(total > 0), NONE)
