"""Settings of a TrainSpec that contradict each other, the base or the data. No torch."""

from __future__ import annotations

from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods import CLASSIFICATION_TASKS, BaseFacts, refuse_method, trains_beside_head
from finetuned_service.jobs.specs import MAX_STEPS, ClassificationOptions, ContrastiveOptions, TrainSpec
from finetuned_service.vocabulary import ClassWeights, Objective, Task


def refuse_contradictions(spec: TrainSpec, base: BaseFacts, max_rank: int, figures: tuple[str, ...]) -> None:
    """See that a resolved spec can run; `figures` are what it will measure.

    Raises:
        InvalidField: it cannot; all violations at once.
    """
    refusals = [
        *refuse_method(spec, base, max_rank),
        *_preferences(spec),
        *_sizes(spec, base),
        *_weights(spec),
        *_promotion(spec, figures),
    ]
    if refusals:
        violations = [violation for refusal in refusals for violation in refusal.violations]
        raise InvalidField("; ".join(refusal.message for refusal in refusals), violations=violations)


def _preferences(spec: TrainSpec) -> list[FinetunedError]:
    """What of the settings contradicts the objective."""
    if spec.objective is not Objective.DPO:
        unread = spec.dpo is not None
        said = (
            f"is set, and the objective is OBJECTIVE_{spec.objective}, which does not read it; leave it out"
        )
        return [InvalidField.one("spec.dpo", said)] if unread else []
    if spec.data.train_on_prompt:
        said = "is on; OBJECTIVE_DPO compares answers, and both have the same prompt: leave it off"
        return [InvalidField.one("spec.data.train_on_prompt", said)]
    return []


def _sizes(spec: TrainSpec, base: BaseFacts) -> list[FinetunedError]:
    refusals: list[FinetunedError] = []
    batch_rows, micro_rows = spec.optimization.batch_rows, spec.optimization.micro_batch_rows
    if micro_rows is not None and batch_rows % micro_rows:
        divisors = [str(rows) for rows in range(1, batch_rows + 1) if batch_rows % rows == 0]
        refusals.append(
            InvalidField.one(
                "spec.optimization.micro_batch_rows",
                f"is {micro_rows}; it must divide batch_rows ({batch_rows}): {', '.join(divisors)}",
            )
        )
    steps, epochs = spec.optimization.max_steps, spec.optimization.epochs
    if steps is not None and steps > MAX_STEPS:
        refusals.append(
            InvalidField.one(
                "spec.optimization.max_steps",
                f"would be {steps:,}, which is what {epochs:g} epochs take with batch_rows {batch_rows}; allowed: 1 to "
                f"{MAX_STEPS:,}. Choose fewer epochs or a larger batch_rows, or set max_steps",
            )
        )
    if spec.data.max_row_tokens is not None and spec.data.max_row_tokens > base.context_tokens:
        refusals.append(
            InvalidField.one(
                "spec.data.max_row_tokens",
                f"is {spec.data.max_row_tokens}; the base's context allows 8 to {base.context_tokens}",
            )
        )
    if spec.optimization.head_learning_rate is not None and not trains_beside_head(spec):
        said = "is set, and no head trains beside other parameters: set learning_rate, or leave it out"
        refusals.append(InvalidField.one("spec.optimization.head_learning_rate", said))
    answers = spec.task is Task.TEXT_GENERATION
    if not answers and spec.optimization.activation_checkpointing:
        said = f"is on; it is for {Task.TEXT_GENERATION}, whose activations are large: unset it"
        refusals.append(InvalidField.one("spec.optimization.activation_checkpointing", said))
    if answers and spec.evaluation.generation_max_tokens >= base.context_tokens:
        refusals.append(
            InvalidField.one(
                "spec.evaluation.generation_max_tokens",
                f"is {spec.evaluation.generation_max_tokens}; with a prompt it must fit into the base's "
                f"context: 1 to {base.context_tokens - 1}",
            )
        )
    return refusals


def _weights(spec: TrainSpec) -> list[FinetunedError]:
    options = spec.classification
    if spec.task not in CLASSIFICATION_TASKS and options != ClassificationOptions():
        allowed = ", ".join(sorted(CLASSIFICATION_TASKS))
        return [
            InvalidField.one("spec.classification", f"is set for {spec.task}; it is for {allowed}: unset it")
        ]
    if spec.task is not Task.FEATURE_EXTRACTION and spec.contrastive != ContrastiveOptions():
        said = f"is set for {spec.task}; it is for {Task.FEATURE_EXTRACTION}: unset it"
        return [InvalidField.one("spec.contrastive", said)]
    if options.label_weights and options.class_weights is ClassWeights.BALANCED:
        return [
            InvalidField.one(
                "spec.classification.label_weights",
                "is set beside CLASS_WEIGHTS_BALANCED; choose one of them",
            )
        ]
    return []


def _promotion(spec: TrainSpec, figures: tuple[str, ...]) -> list[FinetunedError]:
    if spec.promote_if is None:
        return []
    if not spec.eval_dataset and spec.data.holdout_fraction == 0:
        return [
            InvalidField.one(
                "spec.promote_if",
                "needs held-out rows to measure; give an eval_dataset or a holdout_fraction above 0",
            )
        ]
    metric = spec.promote_if.metric
    if metric not in figures:
        return [
            InvalidField.one(
                "spec.promote_if.metric",
                f"is {metric!r}; {_way(spec)} measures {', '.join(figures)}",
            )
        ]
    answers = spec.task is Task.TEXT_GENERATION
    if answers and metric == "exact_match" and spec.evaluation.generation_rows == 0:
        return [
            InvalidField.one(
                "spec.promote_if.metric",
                "is 'exact_match', which generation_rows 0 does not measure; raise it or choose 'loss'",
            )
        ]
    return []


def _way(spec: TrainSpec) -> str:
    if spec.task is Task.TEXT_GENERATION:
        return f"OBJECTIVE_{spec.objective or Objective.SFT}"
    return f"the task {spec.task} with such rows"
