"""The loss of direct preference optimisation, and the rewards that it implies (Rafailov et al. 2023, equation 7).

The reward of an answer is beta * (log p(answer) - log p_reference(answer)), in which the reference is the model as
it was before training; p(answer) is the product over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.jobs.specs import DpoSettings
from finetuned_service.vocabulary import Metric


def rewards(log_probabilities: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Rewards of answers; all of one shape, logarithms in nats."""
    return beta * (log_probabilities - reference)


def pair_losses(rewarded: Tensor, settings: DpoSettings) -> Tensor:
    """The loss of each pair, in nats, [P]: how surprising it is that the chosen answer was chosen.

    With `label_smoothing` s a choice is taken to be wrong in so many of all cases: (1 - s) times the loss of the
    choice and s times that of its opposite (conservative DPO, Mitchell 2023).

    Args:
        rewarded: [P, 2], rewards of the chosen and of the rejected answers.
        settings: of the job.
    """
    margins = rewarded[:, 0] - rewarded[:, 1]
    wrong = settings.label_smoothing
    losses = -(1.0 - wrong) * functional.logsigmoid(margins)
    return losses - wrong * functional.logsigmoid(-margins) if wrong else losses


def reward_metrics(rewarded: Tensor) -> tuple[Metric, ...]:
    """Means over pairs; a pair whose answers have equal rewards counts half.

    Args:
        rewarded: [P, 2], rewards of the chosen and of the rejected answers; at least one pair.
    """
    chosen, rejected = rewarded.double().unbind(dim=1)
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    return (
        Metric(name="reward_accuracy", value=right.mean().item(), higher_is_better=True),
        Metric(name="reward_margin", value=(chosen - rejected).mean().item(), higher_is_better=True),
        Metric(name="chosen_reward", value=chosen.mean().item(), higher_is_better=True),
        Metric(name="rejected_reward", value=rejected.mean().item(), higher_is_better=False),
    )


def pair_metrics(
    log_probabilities: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    settings: DpoSettings,
) -> tuple[Metric, ...]:
    """The mean loss and the rewards of pairs, from log-probabilities [P, 2] in nats; at least one pair."""
    rewarded = rewards(
        torch.tensor(log_probabilities, dtype=torch.float64),
        torch.tensor(reference, dtype=torch.float64),
        settings.beta,
    )
    loss = pair_losses(rewarded, settings).mean().item()
    return (Metric(name="loss", value=loss, higher_is_better=False), *reward_metrics(rewarded))
