"""What quality is measured on: windows of token ids from the built-in text or from a dataset's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from finetuned_service.datasets.rows import read_rows
from finetuned_service.errors import InvalidField
from finetuned_service.text.general import cut, general_text
from finetuned_service.text.supervision import encode_row
from finetuned_service.text.tokenizer import BaseTokenizer

WINDOW_TOKENS = 512
"""Longest stretch that is scored with its own context. Long enough that little is lost at its start,
short enough that the logits of one window stay small (50 MB in bfloat16 for 49k words)."""
MAX_WINDOWS = 64
"""Of a dataset, its first windows are measured: the figures settle long before, and time is the user's."""


def measured_windows(
    tokenizer: BaseTokenizer, rows_path: Path | None, context_tokens: int
) -> list[list[int]]:
    """The windows to score, each of 2 to `WINDOW_TOKENS` ids.

    A text is cut into windows of equal length; each begins as the base's inputs do (a bos token, where
    it has one). Rows of a dataset are encoded as in training, with all their tokens measured; each has
    windows of its own.

    Args:
        tokenizer: the base's.
        rows_path: canonical rows; None takes the built-in text.
        context_tokens: the base's longest context.

    Raises:
        InvalidField: if there is not one token to predict.
    """
    longest = min(WINDOW_TOKENS, context_tokens)
    if rows_path is None:
        start = tokenizer.encode("", add_special_tokens=True)
        texts: Iterable[Sequence[int]] = [tokenizer.encode(general_text())]
    else:
        start = []
        texts = (encode_row(tokenizer, row).token_ids for row in read_rows(rows_path))
    windows = list(islice((w for ids in texts for w in cut(ids, start, longest)), MAX_WINDOWS))
    if not windows:
        raise InvalidField.one("dataset", "has no row of two tokens or more; there is nothing to measure on")
    return windows
