"""Fills the gaps of a TrainSpec from the base and the data, and refuses what cannot run. No torch.

A resolved spec says alone what ran: later builds with other defaults repeat it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods import (
    CLASSIFICATION_TASKS,
    MAX_RANK,
    BaseFacts,
    refuse_method,
    resolve_method,
)
from finetuned_service.jobs.specs import (
    MAX_LEARNING_RATE,
    ClassificationOptions,
    ContrastiveOptions,
    DataOptions,
    DpoSettings,
    Optimization,
    PromoteIf,
    TrainSpec,
)
from finetuned_service.vocabulary import ClassWeights, Method, Objective, Task

DEFAULT_EPOCHS = 3.0
_FEW_STEPS, _MOST_EPOCHS = 240, 8.0
"""Few rows with several labels are seen more often, until there are so many steps: most labels are in few of them.
Measured: docs/decisions/2026-11-27-several-labels-are-learnt-for-longer.md."""
DEFAULT_MAX_ROW_TOKENS = 1024
_CHECKPOINTS = 10
_LEAST_CHECKPOINT_INTERVAL_STEPS = 5


@dataclass(frozen=True, slots=True)
class _Usual:
    """Defaults of a method."""

    epochs: float = DEFAULT_EPOCHS
    learning_rate: float | None = None
    """None is `default_learning_rate` of the base."""
    rate_share: float = 1.0
    """Of that."""


_USUAL: Mapping[Method, _Usual] = {
    # A head is small, begins at zero, and its inputs are computed once: many cheap steps.
    Method.HEAD: _Usual(epochs=30.0, learning_rate=1e-2),
    # As in the paper (Liu et al. 2022, section 3.3).
    Method.IA3: _Usual(learning_rate=3e-3),
    Method.BOTTLENECK: _Usual(rate_share=0.5),
    # LoRA Without Regret (Schulman et al. 2025): whole parameters want a tenth of LoRA's rate.
    Method.LAYERS: _Usual(rate_share=0.1),
    Method.FULL: _Usual(rate_share=0.1),
}
_DECODER_HEAD = _Usual(rate_share=0.1)
_NUMBERS_EPOCHS, _NUMBERS_RATE = 10.0, 5e-3
"""Of a head alone that learns numbers: what their words alone tell is soon learnt, and more only fits the rows. The rate is
for numbers that spread by 1. Measured: docs/decisions/2026-11-27-numbers-set-the-rate-of-a-head.md."""

_USUAL_ENCODING: Mapping[Method, _Usual] = {
    # Measured: docs/decisions/2026-11-26-usual-rates-of-bases-that-encode.md.
    Method.BOTTLENECK: _Usual(rate_share=1.0),
    Method.LAYERS: _Usual(rate_share=0.5),
    Method.FULL: _Usual(rate_share=0.2),
}
_CONVOLUTIONS = _Usual(rate_share=0.4)
"""Of low-rank updates."""


DPO_RATE = 0.1
"""Of a method's usual learning rate: DPO starts from a model that can answer, and soon leaves it. Recipes with
LoRA (TRL's, Zephyr's) have 5e-6 to 5e-5 at the width where `default_learning_rate` gives 3e-4."""

USUAL_METRIC: Mapping[tuple[Task, Objective | None], str] = {
    (Task.TEXT_GENERATION, Objective.DPO): "reward_accuracy",
    (Task.TEXT_CLASSIFICATION, None): "macro_f1",
    (Task.TOKEN_CLASSIFICATION, None): "entity_f1",
    (Task.IMAGE_CLASSIFICATION, None): "accuracy",
    (Task.FEATURE_EXTRACTION, None): "mrr_at_10",
}
"""What decides a promotion where nobody says so, by task and objective; None is any. Else exact_match."""

GENERATION_METRICS: Mapping[Objective, tuple[str, ...]] = {
    Objective.SFT: ("exact_match", "loss"),
    Objective.DPO: ("reward_accuracy", "reward_margin", "loss"),
}
"""What is measured of adapters that generate text, the usual one first."""


def resolve_train(
    spec: TrainSpec,
    *,
    base: BaseFacts,
    train_rows: int,
    max_rank: int = MAX_RANK,
    kind: RowKind | None = None,
    spread: float | None = None,
) -> TrainSpec:
    """The same spec with every default written back.

    Args:
        spec: as the caller wrote it; a resolved one comes back unchanged.
        base: the base to train on.
        train_rows: rows trained on in one epoch, at least 1 (without the held-out ones).
        max_rank: the largest that the server serves.
        kind: of the rows; None leaves what depends on it as for most.
        spread: the standard deviation of the numbers that a head alone learns; None for all else.

    Raises:
        InvalidField: the settings contradict each other, the base or the data; all violations at once.
    """
    usual = _usual(spec, base, spread)
    if kind is RowKind.MULTI_LABEL_TEXT:
        usual = _for_longer(usual, spec.optimization.batch_rows, train_rows)
    resolved = resolve_method(spec, base).model_copy(
        update={
            "optimization": _optimization(spec, usual, base, train_rows),
            "data": _data(spec.data, base),
            "dpo": (spec.dpo or DpoSettings()) if spec.objective is Objective.DPO else spec.dpo,
            "promote_if": _promote_if(spec),
            "classification": _classification(spec),
        }
    )
    _check(resolved, base, max_rank)
    return resolved


def default_learning_rate(hidden_size: int) -> float:
    """The starting point for LoRA on all linear layers of Llama-like models, to two digits.

    Source: tinker-cookbook, `get_lr`: 5e-5 * 10 * (2000 / hidden size) ** 0.78.
    """
    return float(f"{5e-5 * 10 * (2000 / hidden_size) ** 0.78:.1e}")


def _usual(spec: TrainSpec, base: BaseFacts, spread: float | None) -> _Usual:
    if spec.task is Task.TEXT_GENERATION:
        return _DECODER_HEAD if spec.method is Method.HEAD else _USUAL.get(spec.method, _Usual())
    if spec.method is Method.HEAD and spread is not None:
        # A step of Adam moves a weight by about the rate, whatever the size of the error.
        return _Usual(_NUMBERS_EPOCHS, min(MAX_LEARNING_RATE, _NUMBERS_RATE * (spread or 1.0)))
    if spec.method is Method.LORA and base.convolves:
        return _CONVOLUTIONS
    return _USUAL_ENCODING.get(spec.method) or _USUAL.get(spec.method, _Usual())


def _for_longer(usual: _Usual, batch_rows: int, train_rows: int) -> _Usual:
    """As many epochs as make `_FEW_STEPS`, at most `_MOST_EPOCHS`; no fewer than usual."""
    epochs = min(_MOST_EPOCHS, float(math.ceil(_FEW_STEPS * batch_rows / train_rows)))
    return replace(usual, epochs=max(usual.epochs, epochs))


def _optimization(spec: TrainSpec, usual: _Usual, base: BaseFacts, train_rows: int) -> Optimization:
    wanted = spec.optimization
    steps, epochs = wanted.max_steps, wanted.epochs
    if steps is None:
        epochs = usual.epochs if epochs is None else epochs
        steps = max(1, math.ceil(epochs * train_rows / wanted.batch_rows))
    elif epochs is None:
        epochs = min(1000.0, steps * wanted.batch_rows / train_rows)
    interval = max(_LEAST_CHECKPOINT_INTERVAL_STEPS, math.ceil(steps / _CHECKPOINTS))
    rate = usual.learning_rate or usual.rate_share * default_learning_rate(base.hidden_size)
    if spec.objective is Objective.DPO:
        rate *= DPO_RATE
    rate = float(f"{rate:.1e}")
    rate = rate if wanted.learning_rate is None else wanted.learning_rate
    return wanted.model_copy(
        update={
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


def _promote_if(spec: TrainSpec) -> PromoteIf | None:
    if spec.promote_if is None or spec.promote_if.metric:
        return spec.promote_if
    named = USUAL_METRIC.get((spec.task, spec.objective)) or USUAL_METRIC.get((spec.task, None))
    return PromoteIf.model_validate(spec.promote_if.model_dump() | {"metric": named or "exact_match"})


def _classification(spec: TrainSpec) -> ClassificationOptions:
    options = spec.classification
    if spec.task not in CLASSIFICATION_TASKS or options.class_weights is not None:
        return options
    balanced = spec.task is not Task.TOKEN_CLASSIFICATION and not options.label_weights
    chosen = ClassWeights.BALANCED if balanced else ClassWeights.NONE
    return options.model_copy(update={"class_weights": chosen})


def _check(spec: TrainSpec, base: BaseFacts, max_rank: int) -> None:
    refusals = [
        *refuse_method(spec, base, max_rank),
        *_preferences(spec),
        *_sizes(spec, base),
        *_weights(spec),
        *_promotion(spec),
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
    if spec.data.max_row_tokens is not None and spec.data.max_row_tokens > base.context_tokens:
        refusals.append(
            InvalidField.one(
                "spec.data.max_row_tokens",
                f"is {spec.data.max_row_tokens}; the base's context allows 8 to {base.context_tokens}",
            )
        )
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


def _promotion(spec: TrainSpec) -> list[FinetunedError]:
    if spec.promote_if is None:
        return []
    if not spec.eval_dataset and spec.data.holdout_fraction == 0:
        return [
            InvalidField.one(
                "spec.promote_if",
                "needs held-out rows to measure; give an eval_dataset or a holdout_fraction above 0",
            )
        ]
    answers = spec.task is Task.TEXT_GENERATION
    measured = GENERATION_METRICS[spec.objective or Objective.SFT] if answers else ()
    if answers and spec.promote_if.metric not in measured:
        return [
            InvalidField.one(
                "spec.promote_if.metric",
                f"is {spec.promote_if.metric!r}; OBJECTIVE_{spec.objective or Objective.SFT} measures "
                f"{', '.join(measured)}",
            )
        ]
    if answers and spec.promote_if.metric == "exact_match" and spec.evaluation.generation_rows == 0:
        return [
            InvalidField.one(
                "spec.promote_if.metric",
                "is 'exact_match', which generation_rows 0 does not measure; raise it or choose 'loss'",
            )
        ]
    return []
