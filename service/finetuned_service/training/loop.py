"""The training loop: optimizer steps, held-out loss, checkpoints, early stopping, until done or told to stop."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic

import torch
from torch import nn

from finetuned_service.adapters.head import CLASSIFIER
from finetuned_service.errors import TrainingDiverged
from finetuned_service.jobs.events import Checkpoint, EvaluationFinished, Notice, Overfitting, Progress
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.specs import Optimization
from finetuned_service.training.checkpoint import CheckpointStore, Evaluation, RunState
from finetuned_service.training.gradients import Gradients
from finetuned_service.training.order import RowOrder, micro_batches
from finetuned_service.training.schedule import Plan
from finetuned_service.training.trainable import R, Trainable
from finetuned_service.vocabulary import Metric

EVALUATION_ROWS = 16
"""Held-out rows in one forward pass."""
_SPEED_STEPS = 10
"""Over how many of the last steps the speed is told."""


class Ended(Enum):
    FINISHED = auto()
    EARLY = auto()
    """The held-out loss got no better for as many evaluations as the patience allows."""
    STOPPED = auto()
    """Told to stop; its checkpoint is written."""


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step."""

    loss: float
    """Mean over what the batch's rows supervise, in nats (of numbers in their unit, squared), before the step."""
    learning_rate: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What was measured of held-out rows between steps."""

    loss: float
    """Mean over what they supervise, in the unit of the training loss; decides what the best checkpoint is."""
    metrics: tuple[Metric, ...] = ()
    """What is told beside it."""


class Trainer(Generic[R]):
    """One run. `run` goes on from `state`; the model and the optimizer must be as it says.

    Args:
        model: what is trained.
        settings: resolved.
        plan: made from the same settings.
        patience: evaluations without a better loss before the run ends early; 0 for never.
        train_rows: at least one.
        heldout_rows: none leaves out evaluation; the last checkpoint is then the result.
        checkpoints: where the run's state is kept.
        report: takes Progress, Checkpoint, EvaluationFinished and Notice.
        stop: asks the run to end after the current step.
        state: where to begin.
        seconds_afterwards: what the job will do after the last step, for the expected time.
        measure: measures the held-out rows; None takes their loss alone.
        whole_batches: the loss of a row depends on the others of its step; whatever is computed in parts, the model does so.
    """

    def __init__(
        self,
        model: Trainable[R],
        settings: Optimization,
        plan: Plan,
        *,
        patience: int,
        train_rows: Sequence[R],
        heldout_rows: Sequence[R],
        checkpoints: CheckpointStore,
        report: ReportFunction,
        stop: StopFlag,
        state: RunState,
        seconds_afterwards: float = 0.0,
        measure: Callable[[Sequence[R]], HeldOut] | None = None,
        whole_batches: bool = False,
    ) -> None:
        self.model, self.settings, self.plan, self.patience = model, settings, plan, patience
        self.train_rows, self.heldout_rows = train_rows, heldout_rows
        self.checkpoints, self.report, self.stop, self.state = checkpoints, report, stop, state
        self.parameters = [parameter for _, parameter in model.named_parameters()]
        groups, self._rates = _groups(model, plan)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        self._gradients = Gradients(report)
        self._order = RowOrder(len(train_rows), settings.batch_rows, settings.seed)
        self._last_steps: deque[Step] = deque(maxlen=_SPEED_STEPS)
        self._seconds_afterwards = seconds_afterwards
        self._whole_batches = whole_batches
        self._evaluation_seconds = 0.0
        self.measure = measure or self._loss_alone
        if state.step:
            checkpoints.restore(state.step, model, self.optimizer)

    def run(self) -> Ended:
        while self.state.step < self.plan.total_steps and not self._out_of_patience():
            if self.stop.is_set():
                self._keep()
                return Ended.STOPPED
            step = self.step()
            self._tell(step)
            if self.heldout_rows and self.plan.evaluates_after(self.state.step):
                self._evaluate(step.loss)
            if self.plan.keeps_after(self.state.step):
                self._keep()
        return Ended.EARLY if self.state.step < self.plan.total_steps else Ended.FINISHED

    def parts_of_step(self, step: int) -> list[list[R]]:
        """The rows of a step, counted from 0, as they run one part after another."""
        rows = self._rows_of_step(step)
        return self._parts(rows, self.settings.micro_batch_rows or len(rows))

    def _rows_of_step(self, step: int) -> list[R]:
        return [self.train_rows[index] for index in self._order.rows_of_step(step)]

    def step(self) -> Step:
        """One AdamW step on the mean loss of the supervised tokens of the whole batch."""
        try:
            return self._step()
        except RuntimeError as error:
            if not self._gradients.accept_any_order(error):
                raise
        # Out here what the refused step held is free again.
        self.optimizer.zero_grad()
        return self._step()

    def _step(self) -> Step:
        started = time.perf_counter()
        rows = self._rows_of_step(self.state.step)
        supervised = sum(row.supervised_tokens for row in rows)
        factor = self._above_underflow(supervised)
        rate = self.plan.learning_rate(self.state.step)
        for group, rate_of in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate_of(self.state.step)
        loss = 0.0
        for micro_batch in self._parts(rows, self.settings.micro_batch_rows or len(rows)):
            part = self.model.loss_of(micro_batch, factor / supervised)
            self._gradients.add(part)
            loss += part.item() / factor
        if factor != 1.0:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= factor
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm or math.inf)
        self._refuse_divergence(self.state.step + 1, loss, norm.item())
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(len(row.token_ids) for row in rows)
        self.state = self.state.model_copy(
            update={"step": self.state.step + 1, "tokens": self.state.tokens + tokens}
        )
        return Step(loss, rate, tokens, time.perf_counter() - started)

    def _above_underflow(self, supervised: int) -> float:
        """By how much the loss is larger than the mean while gradients pass through float16, which knows no numbers below
        6e-8: each token counts about one, however many there are (loss scaling, Micikevicius et al. 2018). A power of two,
        so that nothing is rounded.
        """
        return 2.0 ** math.floor(math.log2(supervised)) if self.model.dtype is torch.float16 else 1.0

    def _parts(self, rows: Sequence[R], most_rows: int) -> list[list[R]]:
        if not self._whole_batches:
            return micro_batches(rows, most_rows)
        size = self.settings.batch_rows
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _refuse_divergence(self, step: int, loss: float, gradient_norm: float) -> None:
        """`step` counts from 1."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            head = len(self._rates) > 1
            of_head = (
                f", or a head_learning_rate lower than {self.plan.peak_head_learning_rate:g}" if head else ""
            )
            raise TrainingDiverged(
                f"at step {step}, with learning rate {self.plan.learning_rate(step - 1):g}, the loss was {loss:g} and the "
                f"gradient's norm {gradient_norm:g}. Choose a learning_rate lower than "
                f"{self.plan.peak_learning_rate:g}{of_head}",
                metadata={"step": str(step)},
            )

    def _evaluate(self, training_loss: float) -> None:
        started = time.perf_counter()
        step, best = self.state.step, self.state.best
        found = self.measure(self.heldout_rows)
        loss = found.loss
        self._refuse_divergence(step, loss, 0.0)
        evaluations = (*self.state.evaluations, Evaluation(step=step, loss=loss))
        self.state = self.state.model_copy(update={"evaluations": evaluations})
        self._evaluation_seconds = time.perf_counter() - started
        metric = Metric(name="loss", value=loss, higher_is_better=False)
        self.report(EvaluationFinished(subject="adapter", step=step, metrics=(metric, *found.metrics)))
        if best is not None and loss > best.loss and self.state.evaluations_since_best == 1:
            text = (
                f"the held-out loss rose from {best.loss:.4f} at step {best.step} to {loss:.4f} at step {step} "
                f"(training loss {training_loss:.4f}): the adapter begins to overfit. The best checkpoint is "
                "kept; more data or fewer epochs would help"
            )
            self.report(Notice(severity="WARNING", text=text))
            self.report(Overfitting(best_step=best.step, best_loss=best.loss, step=step, loss=loss))

    def _loss_alone(self, rows: Sequence[R]) -> HeldOut:
        return HeldOut(heldout_loss(self.model, rows, self._parts(rows, EVALUATION_ROWS)))

    def _keep(self) -> None:
        self.checkpoints.save(self.state, self.model, self.optimizer)
        last, best = self.state.evaluations[-1:], self.state.best
        evaluated = bool(last) and last[0].step == self.state.step
        self.report(
            Checkpoint(
                step=self.state.step,
                eval_loss=last[0].loss if evaluated else None,
                best=evaluated and last[0] == best,
            )
        )

    def _out_of_patience(self) -> bool:
        return 0 < self.patience <= self.state.evaluations_since_best

    def _tell(self, step: Step) -> None:
        self._last_steps.append(step)
        seconds = sum(step.seconds for step in self._last_steps)
        steps_left = self.plan.total_steps - self.state.step
        evaluations_left = sum(after >= self.state.step for after in self.plan.evaluation_steps)
        self.report(
            Progress(
                phase="training",
                step=self.state.step,
                total_steps=self.plan.total_steps,
                loss=step.loss,
                tokens_per_second=sum(step.tokens for step in self._last_steps) / seconds,
                eta_seconds=steps_left * seconds / len(self._last_steps)
                + evaluations_left * self._evaluation_seconds
                + self._seconds_afterwards,
                learning_rate=step.learning_rate,
                tokens=self.state.tokens,
                step_tokens=step.tokens,
                step_seconds=step.seconds,
            )
        )


@torch.no_grad()
def heldout_loss(model: Trainable[R], rows: Sequence[R], parts: Sequence[Sequence[R]] | None = None) -> float:
    """Mean loss of what the rows supervise; at least one row. `parts` are computed together."""
    scale = 1.0 / sum(row.supervised_tokens for row in rows)
    model.train(mode=False)
    loss = sum(model.loss_of(part, scale).item() for part in parts or micro_batches(rows, EVALUATION_ROWS))
    model.train(mode=True)
    return loss


def _groups(
    model: Trainable[Any], plan: Plan
) -> tuple[list[dict[str, list[nn.Parameter]]], list[Callable[[int], float]]]:
    """Parameters in their order, in the optimizer's groups: a head beside others is the last one. And the rate of each
    group at a step.
    """
    heads: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (heads if name.startswith(f"{CLASSIFIER}.") else others).append(parameter)
    if not heads or not others:
        return [{"params": heads or others}], [plan.learning_rate]
    return [{"params": others}, {"params": heads}], [plan.learning_rate, plan.head_learning_rate]
