"""How much each label counts in the loss; torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetuned_service.adapters.head import Head, Problem
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.specs import ClassificationOptions
from finetuned_service.vocabulary import ClassWeights

MOST = 100.0
"""No label counts more: a handful of rows would decide every step."""


def label_weights(
    options: ClassificationOptions, head: Head, targets: Sequence[Sequence[float]]
) -> tuple[float, ...] | None:
    """A weight for each output of the head, in their order; None where all count alike.

    Of one label each, as scikit-learn's `balanced`: rows / (labels * rows of the label). Of several, what has a
    label counts the rows without it / the rows with it, as torch's `pos_weight` is meant.

    Args:
        options: resolved.
        head: what the outputs mean.
        targets: of the training rows, as `Example.targets`.

    Raises:
        InvalidField: `label_weights` names what is no label.
    """
    own = options.label_weights
    if strange := sorted(own.keys() - set(head.labels)):
        allowed = (
            f"the labels {', '.join(map(repr, head.labels[:20]))}"
            if head.labels
            else "none: rows have scores"
        )
        raise InvalidField.one(
            "spec.classification.label_weights", f"names {strange[0][:60]!r}; allowed: {allowed}"
        )
    if own:
        return tuple(own.get(label, 1.0) for label in head.labels)
    if options.class_weights is not ClassWeights.BALANCED or head.problem is Problem.REGRESSION:
        return None
    if head.problem is Problem.MULTI_LABEL:
        rows, counts = len(targets), np.array(targets).sum(0)
        weights = (rows - counts) / np.maximum(counts, 1)
    else:
        flat = np.array([int(target) for row in targets for target in row])
        counts = np.bincount(flat, minlength=head.outputs)
        weights = len(flat) / (head.outputs * np.maximum(counts, 1))
    weights = np.clip(weights, 1 / MOST, MOST)
    return None if bool(np.allclose(weights, 1.0, atol=1e-9)) else tuple(weights.tolist())


def told(weights: Sequence[float], head: Head) -> str:
    """For people, the heaviest first."""
    pairs = sorted(zip(weights, head.labels, strict=True), reverse=True)
    shown = ", ".join(f"{label[:40]!r} {weight:.3g}" for weight, label in pairs[:10])
    more = f" and {len(pairs) - 10} more" if len(pairs) > 10 else ""
    return (
        f"labels count in the loss by {shown}{more} (spec.classification): rare ones are found more often, and their "
        "scores are higher than their share of rows"
    )
