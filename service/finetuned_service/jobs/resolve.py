"""Fills the gaps of a TrainSpec from the base and the data, and refuses what cannot run. No torch.

A resolved spec says alone what ran: later builds with other defaults repeat it unchanged.
"""

from __future__ import annotations

import math

from pydantic import ValidationError

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import InvalidField, Violation
from finetuned_service.jobs.contradictions import refuse_contradictions
from finetuned_service.jobs.figures import figures_of
from finetuned_service.jobs.methods import (
    CLASSIFICATION_TASKS,
    MAX_RANK,
    BaseFacts,
    resolve_method,
    trains_beside_head,
)
from finetuned_service.jobs.specs import (
    ClassificationOptions,
    DataOptions,
    DpoSettings,
    Optimization,
    PromoteIf,
    TrainSpec,
)
from finetuned_service.jobs.usual import UsualSettings, usual_settings
from finetuned_service.vocabulary import ClassWeights, Objective, Task

DEFAULT_MAX_ROW_TOKENS = 1024
_CHECKPOINTS = 10
_LEAST_CHECKPOINT_INTERVAL_STEPS = 5


def resolve_train(
    spec: TrainSpec,
    *,
    base: BaseFacts,
    train_rows: int,
    max_rank: int = MAX_RANK,
    kind: RowKind | None = None,
    held_out: RowKind | None = None,
) -> TrainSpec:
    """The same spec with every default written back.

    Args:
        spec: as the caller wrote it; a resolved one comes back unchanged.
        base: the base to train on.
        train_rows: rows trained on in one epoch, at least 1 (without the held-out ones).
        max_rank: the largest that the server serves.
        kind: of the rows; None leaves what depends on it as for most.
        held_out: the kind of the rows that are measured; None is that of the others.

    Raises:
        InvalidField: the settings contradict each other, the base or the data; all violations at once.
    """
    usual = usual_settings(spec, base, train_rows=train_rows, kind=kind)
    figures = figures_of(spec, held_out or kind)
    resolved = resolve_method(spec, base).model_copy(
        update={
            "optimization": _optimization(spec, usual, train_rows),
            "data": _data(spec.data, base),
            "dpo": (spec.dpo or DpoSettings()) if spec.objective is Objective.DPO else spec.dpo,
            "promote_if": _promote_if(spec.promote_if, figures),
            "classification": _classification(spec),
        }
    )
    refuse_contradictions(resolved, base, max_rank, figures)
    _refuse_out_of_bounds(resolved)
    return resolved


def _refuse_out_of_bounds(spec: TrainSpec) -> None:
    """Hold what the base, the rows or the weights to continue have decided to the bounds of what callers write: the record
    is read with them, and one that cannot be read again must not be written.
    """
    try:
        TrainSpec.model_validate_json(spec.model_dump_json())
    except ValidationError as error:
        whose, remedy = "", "set it"
        if spec.continue_from:
            whose, remedy = f" in {spec.continue_from}", "train without continue_from"
        violations = [
            Violation(
                ".".join(["spec", *map(str, found["loc"])]),
                f"is {found['input']!r}{whose}; {found['msg'].lower()}: {remedy}",
            )
            for found in error.errors()
        ]
        message = "; ".join(f"{each.field} {each.description}" for each in violations)
        raise InvalidField(message, violations=violations) from error


def _optimization(spec: TrainSpec, usual: UsualSettings, train_rows: int) -> Optimization:
    wanted = spec.optimization
    steps, epochs = wanted.max_steps, wanted.epochs
    if steps is None:
        epochs = usual.epochs if epochs is None else epochs
        steps = max(1, math.ceil(epochs * train_rows / wanted.batch_rows))
    elif epochs is None:
        epochs = min(1000.0, steps * wanted.batch_rows / train_rows)
    interval = max(_LEAST_CHECKPOINT_INTERVAL_STEPS, math.ceil(steps / _CHECKPOINTS))
    rate = usual.learning_rate if wanted.learning_rate is None else wanted.learning_rate
    head_rate = wanted.head_learning_rate
    if head_rate is None and trains_beside_head(spec):
        # That of a version does not begin with zeros; a job that diverged has hardly begun.
        head_rate = rate if spec.continues_version else max(rate, usual.head_learning_rate)
    return wanted.model_copy(
        update={
            "head_learning_rate": head_rate,
            "epochs": epochs,
            "max_steps": steps,
            "micro_batch_rows": wanted.micro_batch_rows or wanted.batch_rows,
            "learning_rate": rate,
            "checkpoint_interval_steps": wanted.checkpoint_interval_steps or interval,
        }
    )


def _data(data: DataOptions, base: BaseFacts) -> DataOptions:
    longest = min(DEFAULT_MAX_ROW_TOKENS, base.context_tokens)
    return data.model_copy(
        update={"max_row_tokens": longest if data.max_row_tokens is None else data.max_row_tokens}
    )


def _promote_if(wanted: PromoteIf | None, figures: tuple[str, ...]) -> PromoteIf | None:
    if wanted is None or wanted.metric:
        return wanted
    return PromoteIf.model_validate(wanted.model_dump() | {"metric": figures[0]})


def _classification(spec: TrainSpec) -> ClassificationOptions:
    options = spec.classification
    if spec.task not in CLASSIFICATION_TASKS or options.class_weights is not None:
        return options
    balanced = spec.task is not Task.TOKEN_CLASSIFICATION and not options.label_weights
    chosen = ClassWeights.BALANCED if balanced else ClassWeights.NONE
    return options.model_copy(update={"class_weights": chosen})
