"""The reference as its users run it: transformers' Trainer and PEFT with its own schedule, order, beginning and dropout;
scikit-learn's logistic regression over the frozen base for a head alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from transformers import set_seed

from benchmarks.quality.reference.labels import Labelling, labels_of
from benchmarks.quality.reference.loops import Learner, Objective, Trained, train
from benchmarks.quality.reference.rows import Row

RANK, ALPHA = 16, 32


def with_lora(model: Any, targets: Sequence[str], seed: int) -> Any:
    """PEFT's LoRA as PEFT begins it; the same rank and modules as ours by default."""
    set_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets)))


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
    """`settings`: `learning_rate` and `epochs`; the rest is TrainingArguments' own."""
    return train(
        Learner(objective, modules, dropout=dropout),
        rows,
        directory,
        learning_rate=settings["learning_rate"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=batch_rows,
        seed=seed,
    )


def logistic_regression(objective: Labelling, rows: Sequence[Row], settings: Mapping[str, float]) -> Trained:
    """`settings`: `inverse_regularization`, which is C."""
    began = time.perf_counter()
    found = objective.with_vectors(rows)
    inputs = torch.cat([row["vectors"] for row in found]).numpy()
    targets = [objective.labels.index(label) for row in rows for label in labels_of(row)]
    fitted: Any = LogisticRegression(C=settings["inverse_regularization"], max_iter=1000)
    fitted.fit(inputs, targets)
    with torch.no_grad():
        # Two classes would have one row; every study has more.
        objective.head.weight.copy_(torch.tensor(fitted.coef_))
        objective.head.bias.copy_(torch.tensor(fitted.intercept_))
    return Trained([], time.perf_counter() - began)
