"""One vector of many."""

from __future__ import annotations

from torch import Tensor

from finetuned_service.vocabulary import Pooling


def pool(rows: Tensor, pooling: Pooling | None) -> Tensor:
    """`[tokens, width]` of one input to `[1, width]`; None leaves it as it is.

    The mean is of all tokens, those that the tokenizer puts around a text included, as sentence-transformers does.
    """
    match pooling:
        case None:
            return rows
        case Pooling.MEAN:
            return rows.mean(0, keepdim=True)
        case Pooling.CLS:
            return rows[:1]
        case Pooling.LAST:
            return rows[-1:]
