"""scikit-learn's linear models over what a frozen base makes of rows: the tuned reference of a head alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.labels import LABELS, SCORE, Labelling
from benchmarks.quality.reference.trained import Trained

ITERATIONS = 1000


def linear_model(objective: Labelling, rows: Sequence[Row], settings: Mapping[str, float]) -> Trained:
    """Logistic regression, one for each of several labels; ridge regression of numbers. `settings`:
    `inverse_regularization`, which is C, and 1 / alpha of the ridge.
    """
    began = time.perf_counter()
    found = objective.with_vectors(rows)
    inputs = torch.cat([row["vectors"] for row in found]).numpy()
    targets = objective.targets(rows).numpy()
    strength = settings["inverse_regularization"]
    if objective.told == SCORE:
        fitted: Any = Ridge(alpha=1 / strength).fit(inputs, targets)
        weight, bias = fitted.coef_, fitted.intercept_
    elif objective.told == LABELS:
        weights = "balanced" if objective.weights is not None else None
        each: list[Any] = [_logistic(inputs, column, strength, weights) for column in targets.T]
        weight = np.concatenate([one.coef_ for one in each])
        bias = np.concatenate([one.intercept_ for one in each])
    else:
        # Two classes would have one row; every study has more.
        fitted = _logistic(inputs, targets, strength)
        weight, bias = fitted.coef_, fitted.intercept_
    with torch.no_grad():
        objective.head.weight.copy_(torch.tensor(weight).view_as(objective.head.weight))
        objective.head.bias.copy_(torch.tensor(bias).view_as(objective.head.bias))
    return Trained([], time.perf_counter() - began)


def _logistic(inputs: Any, targets: Any, strength: float, weights: str | None = None) -> Any:
    return LogisticRegression(C=strength, max_iter=ITERATIONS, class_weight=weights).fit(inputs, targets)
