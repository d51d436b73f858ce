"""Which figures a job measures of what it made: what may decide a promotion. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.vocabulary import Objective, Task

GENERATION_FIGURES: Mapping[Objective, tuple[str, ...]] = {
    Objective.SFT: ("exact_match", "loss"),
    Objective.DPO: ("reward_accuracy", "reward_margin", "loss"),
}
"""Of adapters that generate text. The first is the one that decides where nobody says."""
_FIGURES_OF_PLAIN_TEXT = ("loss",)
"""It asks for no answer."""

FIGURES_OF_ROWS: Mapping[RowKind, tuple[str, ...]] = {
    RowKind.LABELLED_TEXT: ("macro_f1", "accuracy", "loss"),
    RowKind.MULTI_LABEL_TEXT: ("macro_f1", "micro_f1", "exact_match", "loss"),
    RowKind.SCORED_TEXT: ("spearman", "pearson", "mean_absolute_error", "loss"),
    RowKind.LABELLED_TOKENS: ("entity_f1", "accuracy", "loss"),
    RowKind.LABELLED_IMAGE: ("accuracy", "macro_f1", "loss"),
    RowKind.PAIR: ("mrr_at_10", "recall_at_1", "recall_at_10"),
    RowKind.SCORED_PAIR: ("spearman", "pearson"),
}
"""Of all others, by what is held out; the first likewise."""

_USUAL_ROWS: Mapping[Task, RowKind] = {
    Task.TEXT_CLASSIFICATION: RowKind.LABELLED_TEXT,
    Task.TOKEN_CLASSIFICATION: RowKind.LABELLED_TOKENS,
    Task.IMAGE_CLASSIFICATION: RowKind.LABELLED_IMAGE,
    Task.FEATURE_EXTRACTION: RowKind.PAIR,
}


def figures_of(spec: TrainSpec, held_out: RowKind | None) -> tuple[str, ...]:
    """The names of what is measured on held-out rows of that kind; None is the usual one of the task."""
    if spec.task is Task.TEXT_GENERATION:
        if held_out is RowKind.TEXT:
            return _FIGURES_OF_PLAIN_TEXT
        return GENERATION_FIGURES[spec.objective or Objective.SFT]
    return FIGURES_OF_ROWS[held_out or _USUAL_ROWS[spec.task]]
