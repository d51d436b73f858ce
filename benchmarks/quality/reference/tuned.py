"""The reference as its users run it: PEFT's own beginning, the Trainer's own schedule, order and dropout."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.loops import Learner, Objective, train
from benchmarks.quality.reference.trained import Trained

RANK, ALPHA = 16, 32
"""The same rank as ours by default."""


def lora_config(targets: Sequence[str], task_type: str | None = None) -> LoraConfig:
    """PEFT's LoRA on the modules that ours has by default."""
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), task_type=task_type)


def with_lora(model: Any, targets: Sequence[str], seed: int) -> Any:
    """PEFT's LoRA as PEFT begins it."""
    set_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, lora_config(targets))


def tuned_loop(
    objective: Objective,
    modules: Sequence[torch.nn.Module],
    rows: Sequence[Row],
    settings: Mapping[str, float],
    *,
    batch_rows: int,
    seed: int,
    directory: str,
    dropout: bool,
) -> Trained:
    """`settings`: as `tuned_arguments`; the rest is TrainingArguments' own."""
    return train(
        Learner(objective, modules, dropout=dropout),
        rows,
        directory,
        **tuned_arguments(settings, batch_rows, seed),
    )


def tuned_arguments(settings: Mapping[str, float], batch_rows: int, seed: int) -> dict[str, Any]:
    """TrainingArguments of `settings`: `learning_rate` and `epochs`; `max_steps` where it ends before."""
    return {
        "learning_rate": settings["learning_rate"],
        "num_train_epochs": settings["epochs"],
        "max_steps": int(settings.get("max_steps", -1)),
        "per_device_train_batch_size": batch_rows,
        "seed": seed,
    }
