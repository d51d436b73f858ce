"""Whether training cost the base what it could do before: perplexity on general text, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.specs import Baseline
from finetuned_service.text.general import cut, general_text
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.evaluate import Scoring
from finetuned_service.vocabulary import Metric

GENERAL_PERPLEXITY = "general_perplexity"
MOST_TOKENS = 2048
"""Before and after are measured on the same ones, so that few tell a change."""
WINDOW_TOKENS = 512
MUCH = 0.1
"""From this rise on, a warning is due."""
_MOST_NATS = 700.0
"""The exponential of more is no float."""


def general_rows(tokenizer: BaseTokenizer, context_tokens: int) -> tuple[EncodedRow, ...]:
    """Windows of the built-in text, each of which begins as the base's inputs do; all but the first id are scored."""
    start = tokenizer.encode("", add_special_tokens=True)
    token_ids = tokenizer.encode(general_text())[:MOST_TOKENS]
    windows = cut(token_ids, start, min(WINDOW_TOKENS, context_tokens))
    return tuple(EncodedRow(window, [False, *[True] * (len(window) - 1)]) for window in windows)


@dataclass(frozen=True, slots=True)
class WithGeneralText:
    """A scoring that also measures the perplexity on general text; see `Scoring`."""

    inner: Scoring
    general: tuple[EncodedRow, ...]

    def rows(self, tokenizer: BaseTokenizer, baseline: Baseline) -> list[EncodedRow]:
        """Those of the inner scoring, then the general ones, which get no prompt whoever is measured."""
        return [*self.inner.rows(tokenizer, baseline), *self.general]

    def metrics(
        self, rows: Sequence[EncodedRow], log_probabilities: Sequence[float | None], answers: Sequence[str]
    ) -> tuple[Metric, ...]:
        """Those of the inner scoring, and exp of the mean of -log p over the scored ids of the general rows."""
        split = len(rows) - len(self.general)
        inner = self.inner.metrics(rows[:split], log_probabilities[:split], answers)
        nats = -sum(value or 0.0 for value in log_probabilities[split:])
        mean = nats / sum(row.supervised_tokens for row in self.general)
        perplexity = math.exp(min(mean, _MOST_NATS))
        return (*inner, Metric(name=GENERAL_PERPLEXITY, value=perplexity, higher_is_better=False))


def forgotten(before: Sequence[Metric], after: Sequence[Metric]) -> Notice | None:
    """What to tell of a perplexity that rose much; None if it did not, or was not measured."""
    found = [
        metric.value for metrics in (before, after) for metric in metrics if metric.name == GENERAL_PERPLEXITY
    ]
    if len(found) < 2 or found[1] <= (1 + MUCH) * found[0]:
        return None
    text = (
        f"the perplexity on general text rose from {found[0]:.2f} to {found[1]:.2f}, by {found[1] / found[0] - 1:.0%}: "
        "the adapter has forgotten some of what the base could do. A lower learning rate, fewer epochs or a lower rank "
        "forget less"
    )
    return Notice(severity="WARNING", text=text)
