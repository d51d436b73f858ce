"""Whether a dataset can be what a job was asked to make of it, told before any row is read.

What rows are decides the objective where nobody has named one: a task has one for each of its kinds of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from finetuned_service.datasets.kinds import OUTSIDE, RowKind, entity_of
from finetuned_service.datasets.labels import differing_labels
from finetuned_service.datasets.store import Dataset
from finetuned_service.errors import InvalidField
from finetuned_service.vocabulary import Objective, Task

GENERATION_KINDS = (RowKind.PROMPT_COMPLETION, RowKind.CHAT, RowKind.TEXT)
"""What a language model learns to write."""

KINDS: Mapping[Task, Mapping[Objective, tuple[RowKind, ...]]] = {
    Task.TEXT_GENERATION: {Objective.SFT: GENERATION_KINDS, Objective.DPO: (RowKind.PREFERENCE,)},
    Task.TEXT_CLASSIFICATION: {
        Objective.CLASSIFICATION: (
            RowKind.LABELLED_TEXT,
            RowKind.MULTI_LABEL_TEXT,
            RowKind.SCORED_TEXT,
        )
    },
    Task.TOKEN_CLASSIFICATION: {Objective.CLASSIFICATION: (RowKind.LABELLED_TOKENS,)},
    Task.FEATURE_EXTRACTION: {Objective.CONTRASTIVE: (RowKind.PAIR, RowKind.SCORED_PAIR)},
    Task.IMAGE_CLASSIFICATION: {Objective.CLASSIFICATION: (RowKind.LABELLED_IMAGE,)},
}
"""The kinds of rows that each task can be trained on, by objective; a task's usual objective comes first."""


def objective_for(task: Task, wanted: Objective | None, rows: Dataset) -> Objective:
    """The objective of a job: the one wanted, else the task's for such rows, else the task's usual one.

    Raises:
        InvalidField: the task has no such objective.
    """
    objectives = KINDS[task]
    if wanted is None:
        fitting = (objective for objective, kinds in objectives.items() if rows.row_kind in kinds)
        return next(fitting, next(iter(objectives)))
    if wanted not in objectives:
        allowed = ", ".join(f"OBJECTIVE_{objective}" for objective in objectives)
        raise InvalidField.one(
            "spec.objective", f"is OBJECTIVE_{wanted}; for the task {task} allowed: {allowed}"
        )
    return wanted


def check_datasets(task: Task, objective: Objective, rows: Dataset, held_out: Dataset | None) -> None:
    """Refuse rows that the task cannot be trained on, or evaluated on, and labels that only one side has.

    Args:
        task: what the adapter is for.
        objective: one of the task's.
        rows: to train on.
        held_out: to evaluate on; None takes a part of the others.

    Raises:
        InvalidField: naming the dataset, what it holds, and what is needed.
    """
    kinds = KINDS[task][objective]
    _refuse_other("spec.dataset", rows, kinds, f"{_way(task, objective)} trains on")
    if held_out is None:
        return
    # What is written, and vectors, are measured on other kinds of rows as well.
    any_of_them = rows.row_kind in GENERATION_KINDS or task is Task.FEATURE_EXTRACTION
    allowed = kinds if any_of_them else (rows.row_kind,)
    _refuse_other("spec.eval_dataset", held_out, allowed, f"{rows.name} is evaluated on")
    said = differing_labels(_labels(rows), _labels(held_out))
    if said:
        raise InvalidField.one("spec.eval_dataset", f"{held_out.name} {said}")


def check_measurable(rows: Dataset) -> None:
    """Refuse rows on which no perplexity can be measured.

    Raises:
        InvalidField: naming the dataset and what it holds.
    """
    _refuse_other("spec.dataset", rows, GENERATION_KINDS, "quality is measured on")


def _refuse_other(field: str, dataset: Dataset, allowed: tuple[RowKind, ...], use: str) -> None:
    if dataset.row_kind in allowed:
        return
    fitting = [
        _way(task, objective)
        for task, objectives in KINDS.items()
        for objective, kinds in objectives.items()
        if dataset.row_kind in kinds
    ]
    other = f", or {' or '.join(fitting)}" if fitting else ""
    raise InvalidField.one(
        field,
        f"{dataset.name} holds {dataset.row_kind} rows; {use} {' or '.join(allowed)} rows: choose another "
        f"dataset{other}",
    )


def _way(task: Task, objective: Objective) -> str:
    """The objective is named where the task has several."""
    return f"the task {task}" + (f" with OBJECTIVE_{objective}" if len(KINDS[task]) > 1 else "")


def _labels(dataset: Dataset) -> set[str]:
    found = {count.label for count in dataset.report.labels} if dataset.report else set[str]()
    if dataset.row_kind is not RowKind.LABELLED_TOKENS:
        return found
    return {entity_of(tag) for tag in found if tag != OUTSIDE}
