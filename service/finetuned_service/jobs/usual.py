"""What is usual where a TrainSpec says nothing: epochs and learning rates by method, base and rows. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.jobs.methods import BaseFacts
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.vocabulary import Method, Objective, Task

_EPOCHS = 3.0


@dataclass(frozen=True, slots=True)
class _Longer:
    """Few rows are seen more often than usual: until there are so many steps, at most so often."""

    steps: int
    most_epochs: float


_SEVERAL_LABELS = _Longer(240, 8.0)
"""Most labels are in few of the rows. Measured: docs/decisions/2026-11-27-several-labels-are-learnt-for-longer.md."""
_ANSWERS = _Longer(120, 6.0)
_SHORT_RUN_STEPS, _SHORT_RUN_RATE = 150, 1.5
"""Answers are learnt at so many times the usual rate by runs of at most so many steps.
Measured, both: docs/decisions/2026-11-27-few-answers-are-learnt-for-longer.md."""


@dataclass(frozen=True, slots=True)
class _Usual:
    """Defaults of a method."""

    epochs: float = _EPOCHS
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
_NUMBERS = _Usual(epochs=10.0, learning_rate=5e-3)
"""Of a head alone that learns numbers: what their words alone tell is soon learnt, and more only fits the rows.
Measured: docs/decisions/2026-11-27-numbers-set-the-rate-of-a-head.md."""

_USUAL_ENCODING: Mapping[Method, _Usual] = {
    # Measured: docs/decisions/2026-11-26-usual-rates-of-bases-that-encode.md.
    Method.BOTTLENECK: _Usual(rate_share=1.0),
    Method.LAYERS: _Usual(rate_share=0.5),
    # These, too: docs/decisions/2026-11-28-a-head-has-a-rate-of-its-own.md.
    Method.FULL: _Usual(rate_share=0.1),
    Method.IA3: _Usual(learning_rate=1e-2),
}
_VECTORS = _Usual(rate_share=0.05)
"""Of whole parameters whose vectors are what is wanted: there is no head that would follow them."""
_CONVOLUTIONS = _Usual(rate_share=0.4)
"""Of low-rank updates."""

_DPO_RATE = 0.1
"""Of a method's usual learning rate: DPO starts from a model that can answer, and soon leaves it. Recipes with
LoRA (TRL's, Zephyr's) have 5e-6 to 5e-5 at the width where `default_learning_rate` gives 3e-4."""


def default_learning_rate(hidden_size: int) -> float:
    """The starting point for LoRA on all linear layers of Llama-like models, to two digits.

    Source: tinker-cookbook, `get_lr`: 5e-5 * 10 * (2000 / hidden size) ** 0.78.
    """
    return float(f"{5e-5 * 10 * (2000 / hidden_size) ** 0.78:.1e}")


@dataclass(frozen=True, slots=True)
class UsualSettings:
    """What optimization has where it is not set."""

    epochs: float
    learning_rate: float
    head_learning_rate: float
    """Of a head beside other parameters, at least: whatever these want, it begins with zeros."""


def usual_settings(
    spec: TrainSpec, base: BaseFacts, *, train_rows: int, kind: RowKind | None
) -> UsualSettings:
    """See `resolve_train` for the arguments."""
    usual = _usual(spec, base, kind)
    wanted, epochs = spec.optimization, usual.epochs
    longer = _longer(spec, kind)
    if longer is not None:
        enough = float(math.ceil(longer.steps * wanted.batch_rows / train_rows))
        epochs = max(epochs, min(longer.most_epochs, enough))
    rate = usual.learning_rate or usual.rate_share * default_learning_rate(base.hidden_size)
    steps = wanted.max_steps or (wanted.epochs or epochs) * train_rows / wanted.batch_rows
    if longer is _ANSWERS and steps <= _SHORT_RUN_STEPS:
        rate *= _SHORT_RUN_RATE
    if spec.objective is Objective.DPO:
        rate *= _DPO_RATE
    of_head = (_CONVOLUTIONS.rate_share if base.convolves else 1.0) * default_learning_rate(base.hidden_size)
    return UsualSettings(epochs, *(float(f"{each:.1e}") for each in (rate, of_head)))


def _usual(spec: TrainSpec, base: BaseFacts, kind: RowKind | None) -> _Usual:
    if spec.task is Task.TEXT_GENERATION:
        return _DECODER_HEAD if spec.method is Method.HEAD else _USUAL.get(spec.method, _Usual())
    if spec.method is Method.HEAD and kind is RowKind.SCORED_TEXT:
        return _NUMBERS
    if spec.method is Method.FULL and spec.task is Task.FEATURE_EXTRACTION:
        return _VECTORS
    if spec.method is Method.LORA and base.convolves:
        return _CONVOLUTIONS
    return _USUAL_ENCODING.get(spec.method) or _USUAL.get(spec.method, _Usual())


def _longer(spec: TrainSpec, kind: RowKind | None) -> _Longer | None:
    if kind is RowKind.MULTI_LABEL_TEXT:
        return _SEVERAL_LABELS
    answers = kind in {RowKind.PROMPT_COMPLETION, RowKind.CHAT}
    return _ANSWERS if answers and spec.method in {Method.LORA, Method.QLORA} else None
