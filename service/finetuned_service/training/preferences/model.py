"""A base with a method on it that learns from pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetuned_service.jobs.specs import DpoSettings
from finetuned_service.training.loop import EVALUATION_ROWS, HeldOut
from finetuned_service.training.model import AdaptedModel
from finetuned_service.training.order import micro_batches
from finetuned_service.training.preferences.loss import pair_losses, reward_metrics, rewards
from finetuned_service.training.preferences.pairs import EncodedPair


@dataclass(frozen=True, slots=True)
class ReferencedPair:
    """A pair, and how likely both answers were before training."""

    pair: EncodedPair
    reference: tuple[float, float]
    """Log-probabilities of the chosen answer and of the rejected one, in nats."""

    @property
    def token_ids(self) -> list[int]:
        """Of both answers, each after the prompt."""
        return self.pair.token_ids

    @property
    def supervised_tokens(self) -> int:
        """One: the loss is a mean over pairs, however long they are."""
        return 1


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """Trains `policy` on pairs."""

    policy: AdaptedModel
    settings: DpoSettings

    @property
    def dtype(self) -> torch.dtype:
        """See `Trainable`."""
        return self.policy.dtype

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `Parameters`."""
        yield from self.policy.named_parameters()

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """See `Trainable`."""
        self.policy.train(mode)

    def loss_of(self, rows: Sequence[ReferencedPair], scale: float) -> Tensor:
        """See `Trainable`: in nats a pair."""
        return pair_losses(self.rewards_of(rows), self.settings).sum() * scale

    def rewards_of(self, rows: Sequence[ReferencedPair]) -> Tensor:
        """[P, 2], of the chosen and of the rejected answers."""
        found = log_probabilities_of(self.policy, [row.pair for row in rows])
        reference = torch.tensor([row.reference for row in rows], dtype=found.dtype, device=found.device)
        return rewards(found, reference, self.settings.beta)

    @torch.no_grad()
    def measure(self, rows: Sequence[ReferencedPair]) -> HeldOut:
        """The mean loss of held-out pairs, and their rewards; at least one pair."""
        self.train(mode=False)
        rewarded = torch.cat([self.rewards_of(part) for part in micro_batches(rows, EVALUATION_ROWS)])
        self.train(mode=True)
        return HeldOut(pair_losses(rewarded, self.settings).mean().item(), reward_metrics(rewarded))


def log_probabilities_of(policy: AdaptedModel, pairs: Sequence[EncodedPair]) -> Tensor:
    """Of the chosen and of the rejected answers, in nats, [P, 2] in float32 (float64 if the model is)."""
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    return policy.log_probabilities(rows).view(-1, 2)
