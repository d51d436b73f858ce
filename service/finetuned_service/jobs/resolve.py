"""Fills the gaps of a TrainSpec from the base and the data, and refuses what cannot run. No torch.

A resolved spec says alone what ran: later builds with other defaults repeat it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.bases.family import context_of, family_of, width_of
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.values import DataOptions, LoraSettings, Optimization, TrainSpec
from finetuned_service.vocabulary import Family, Method, Pooling, Task

DEFAULT_EPOCHS = 3.0
_ANY_TOKENS = 2**20
_USUAL_LABELS = 1000
"""How many are in the data is not known before it is read."""
DEFAULT_MAX_ROW_TOKENS = 1024
_CHECKPOINTS = 10
_LARGEST_ELEMENT_BYTES = 4
_LEAST_CHECKPOINT_INTERVAL_STEPS = 5


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the defaults of a TrainSpec depend on in a base."""

    hidden_size: int
    context_tokens: int
    linear_modules: tuple[str, ...]
    """Last parts of the names of the linear modules in the decoder's layers, sorted."""
    pooling: Pooling | None = None
    """A text encoder's own; None for others."""

    @classmethod
    def of_directory(cls, directory: Path) -> BaseFacts:
        """Read config.json and the header of model.safetensors."""
        config = read_config(directory)
        family = family_of(config)
        modules = linear_shapes(directory / WEIGHTS_FILE)
        return cls(
            hidden_size=width_of(config),
            # Images have no length.
            context_tokens=_ANY_TOKENS if family is Family.VISION else context_of(config),
            linear_modules=tuple(sorted({name.rpartition(".")[2] for name in modules})),
            pooling=base_inputs(config)[0] if family is Family.ENCODER else None,
        )


@dataclass(frozen=True, slots=True)
class _Usual:
    """Defaults of a method."""

    epochs: float = DEFAULT_EPOCHS
    learning_rate: float | None = None
    """None is `default_learning_rate` of the base."""


_USUAL: Mapping[Method, _Usual] = {Method.HEAD: _Usual(epochs=30.0, learning_rate=1e-2)}
"""A head is small, begins at zero, and its inputs are computed once: many cheap steps."""


def resolve_train(spec: TrainSpec, *, base: BaseFacts, train_rows: int) -> TrainSpec:
    """The same spec with every default written back.

    Args:
        spec: as the caller wrote it; a resolved one comes back unchanged.
        base: the base to train on.
        train_rows: rows trained on in one epoch, at least 1 (without the held-out ones).

    Raises:
        InvalidField: the settings contradict each other, the base or the data; all violations at once.
    """
    resolved = spec.model_copy(
        update={
            "lora": _lora(spec.lora, base),
            "head": spec.head.model_copy(update={"pooling": spec.head.pooling or base.pooling}),
            "optimization": _optimization(spec, base, train_rows),
            "data": _data(spec.data, base),
        }
    )
    _check(resolved, base)
    return resolved


def adapter_bytes(spec: TrainSpec, base_directory: Path) -> int:
    """The most that the tensors of a resolved spec's adapter take, in 32 bits."""
    if spec.method is Method.HEAD:
        return _USUAL_LABELS * (width_of(read_config(base_directory)) + 1) * _LARGEST_ELEMENT_BYTES
    return lora_bytes(spec.lora, base_directory)


def lora_bytes(lora: LoraSettings, base_directory: Path) -> int:
    """The most that the tensors of a resolved LoRA take, A [rank, in] and B [out, rank] for each module; on
    a base of 16 bits it is half of that.
    """
    targets = set(lora.target_modules)
    return sum(
        lora.rank * (out_features + in_features) * _LARGEST_ELEMENT_BYTES
        for name, (out_features, in_features) in linear_shapes(base_directory / WEIGHTS_FILE).items()
        if name.rpartition(".")[2] in targets
    )


def default_learning_rate(hidden_size: int) -> float:
    """The starting point for LoRA on all linear layers of Llama-like models, to two digits.

    Source: tinker-cookbook, `get_lr`: 5e-5 * 10 * (2000 / hidden size) ** 0.78.
    """
    return float(f"{5e-5 * 10 * (2000 / hidden_size) ** 0.78:.1e}")


def _lora(lora: LoraSettings, base: BaseFacts) -> LoraSettings:
    return lora.model_copy(
        update={
            "alpha": 2.0 * lora.rank if lora.alpha is None else lora.alpha,
            "target_modules": tuple(sorted(set(lora.target_modules))) or base.linear_modules,
        }
    )


def _optimization(spec: TrainSpec, base: BaseFacts, train_rows: int) -> Optimization:
    wanted, usual = spec.optimization, _USUAL.get(spec.method, _Usual())
    steps, epochs = wanted.max_steps, wanted.epochs
    if steps is None:
        epochs = usual.epochs if epochs is None else epochs
        steps = max(1, math.ceil(epochs * train_rows / wanted.batch_rows))
    elif epochs is None:
        epochs = min(1000.0, steps * wanted.batch_rows / train_rows)
    interval = max(_LEAST_CHECKPOINT_INTERVAL_STEPS, math.ceil(steps / _CHECKPOINTS))
    rate = usual.learning_rate or default_learning_rate(base.hidden_size)
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


def _check(spec: TrainSpec, base: BaseFacts) -> None:
    refusals = [*_unknown_modules(spec, base), *_sizes(spec, base), *_promotion(spec)]
    if refusals:
        violations = [violation for refusal in refusals for violation in refusal.violations]
        raise InvalidField("; ".join(refusal.message for refusal in refusals), violations=violations)


def _unknown_modules(spec: TrainSpec, base: BaseFacts) -> list[FinetunedError]:
    lora = spec.lora
    if spec.method is not Method.LORA:
        return []
    unknown = sorted(set(lora.target_modules) - set(base.linear_modules))
    if not unknown:
        return []
    return [
        InvalidField.one(
            "spec.lora.target_modules",
            f"names {', '.join(map(repr, unknown))}; the base's linear modules are "
            f"{', '.join(base.linear_modules)} (leave it empty for all of them)",
        )
    ]


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
    if answers and spec.evaluation.generation_max_tokens >= base.context_tokens:
        refusals.append(
            InvalidField.one(
                "spec.evaluation.generation_max_tokens",
                f"is {spec.evaluation.generation_max_tokens}; with a prompt it must fit into the base's "
                f"context: 1 to {base.context_tokens - 1}",
            )
        )
    return refusals


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
    if answers and spec.promote_if.metric == "exact_match" and spec.evaluation.generation_rows == 0:
        return [
            InvalidField.one(
                "spec.promote_if.metric",
                "is 'exact_match', which generation_rows 0 does not measure; raise it or choose 'loss'",
            )
        ]
    return []
