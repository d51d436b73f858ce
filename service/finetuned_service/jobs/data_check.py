"""Whether a dataset can be what a job was asked to make of it, told before any row is read."""

from __future__ import annotations

from collections.abc import Mapping

from finetuned_service.datasets.kinds import OUTSIDE, RowKind, entity_of
from finetuned_service.datasets.labels import differing_labels
from finetuned_service.datasets.store import Dataset
from finetuned_service.errors import InvalidField
from finetuned_service.vocabulary import Task

GENERATION_KINDS = (RowKind.PROMPT_COMPLETION, RowKind.CHAT, RowKind.TEXT)
"""What a language model learns to write."""

KINDS_OF_TASK: Mapping[Task, tuple[RowKind, ...]] = {
    Task.TEXT_GENERATION: GENERATION_KINDS,
    Task.TEXT_CLASSIFICATION: (RowKind.LABELLED_TEXT, RowKind.MULTI_LABEL_TEXT, RowKind.SCORED_TEXT),
    Task.TOKEN_CLASSIFICATION: (RowKind.LABELLED_TOKENS,),
    Task.FEATURE_EXTRACTION: (RowKind.PAIR, RowKind.SCORED_PAIR),
    Task.IMAGE_CLASSIFICATION: (RowKind.LABELLED_IMAGE,),
}
"""The kinds of rows that each task can be trained on."""


def check_datasets(task: Task, rows: Dataset, held_out: Dataset | None) -> None:
    """Refuse rows that the task cannot be trained on, or evaluated on, and labels that only one side has.

    Raises:
        InvalidField: naming the dataset, what it holds, and what is needed.
    """
    _refuse_other("spec.dataset", rows, KINDS_OF_TASK[task], f"the task {task} trains on")
    if held_out is None:
        return
    allowed = KINDS_OF_TASK[task] if rows.row_kind in GENERATION_KINDS else (rows.row_kind,)
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
    fitting = [str(task) for task, kinds in KINDS_OF_TASK.items() if dataset.row_kind in kinds]
    other = f", or the task {' or '.join(fitting)}" if fitting else ""
    raise InvalidField.one(
        field,
        f"{dataset.name} holds {dataset.row_kind} rows; {use} {' or '.join(allowed)} rows: choose another "
        f"dataset{other}",
    )


def _labels(dataset: Dataset) -> set[str]:
    found = {count.label for count in dataset.report.labels} if dataset.report else set[str]()
    if dataset.row_kind is not RowKind.LABELLED_TOKENS:
        return found
    return {entity_of(tag) for tag in found if tag != OUTSIDE}
