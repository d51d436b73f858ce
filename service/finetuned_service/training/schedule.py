"""What a run does at which step, as functions of its settings alone: resuming needs no state of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetuned_service.jobs.specs import EvaluationOptions, Optimization, Schedule


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one run; the settings must be resolved."""

    total_steps: int
    warmup_steps: int
    peak_learning_rate: float
    peak_head_learning_rate: float
    """Of a head beside other parameters."""
    schedule: Schedule
    checkpoint_interval_steps: int
    evaluation_steps: frozenset[int]
    """After which steps the held-out loss is measured; the last one always is among them."""

    @classmethod
    def of(cls, optimization: Optimization, evaluation: EvaluationOptions) -> Plan:
        total, rate = optimization.max_steps, optimization.learning_rate
        interval = optimization.checkpoint_interval_steps
        if total is None or rate is None or interval is None:
            raise ValueError("the settings are not resolved: max_steps, learning_rate or interval is None")
        count = evaluation.evaluations
        return cls(
            total_steps=total,
            warmup_steps=round(optimization.warmup_fraction * total),
            peak_learning_rate=rate,
            peak_head_learning_rate=optimization.head_learning_rate or rate,
            schedule=optimization.schedule,
            checkpoint_interval_steps=interval,
            evaluation_steps=frozenset(
                {round(total * i / count) for i in range(1, count + 1)} - {0} | {total}
            ),
        )

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0: a linear rise to the peak, then the schedule's shape.

        The shapes would reach zero one step after the last, so no step is without effect.
        """
        return self._shaped(self.peak_learning_rate, step)

    def head_learning_rate(self, step: int) -> float:
        """The same of a head beside other parameters."""
        return self._shaped(self.peak_head_learning_rate, step)

    def _shaped(self, peak: float, step: int) -> float:
        if step < self.warmup_steps:
            return peak * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        match self.schedule:
            case Schedule.CONSTANT:
                return peak
            case Schedule.LINEAR:
                return peak * (1 - progress)
            case Schedule.COSINE:
                return peak * 0.5 * (1 + math.cos(math.pi * progress))

    def evaluates_after(self, finished_steps: int) -> bool:
        return finished_steps in self.evaluation_steps

    def keeps_after(self, finished_steps: int) -> bool:
        """Whether a checkpoint is written: at intervals, and where the held-out loss was measured."""
        return finished_steps % self.checkpoint_interval_steps == 0 or self.evaluates_after(finished_steps)
