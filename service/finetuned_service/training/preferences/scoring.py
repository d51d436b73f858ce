"""What the engine that serves makes of held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.jobs.specs import Baseline, DpoSettings
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.preferences.loss import pair_metrics
from finetuned_service.training.preferences.pairs import EncodedPair
from finetuned_service.vocabulary import Metric


@dataclass(frozen=True, slots=True)
class PairScoring:
    """Measures rewards; see `Scoring`."""

    pairs: Sequence[EncodedPair]
    settings: DpoSettings
    reference: Sequence[float | None] | None = None
    """Log-probabilities of `rows` before training, from the same engine; None where these are what is measured."""

    def rows(self, tokenizer: BaseTokenizer, baseline: Baseline) -> list[EncodedRow]:
        """The chosen and the rejected answers in turn."""
        return [row for pair in self.pairs for row in (pair.chosen, pair.rejected)]

    def metrics(
        self,
        rows: Sequence[EncodedRow],
        log_probabilities: Sequence[float | None],
        answers: Sequence[str],
    ) -> tuple[Metric, ...]:
        """Of the pairs that fit the context."""
        found, before = [], []
        reference = self.reference or log_probabilities
        for place in range(0, len(log_probabilities), 2):
            now, then = log_probabilities[place : place + 2], reference[place : place + 2]
            if None not in now and None not in then:
                found.append([value for value in now if value is not None])
                before.append([value for value in then if value is not None])
        return pair_metrics(found, before, self.settings) if found else ()
