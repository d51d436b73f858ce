"""When a run evaluates and keeps checkpoints, and its learning rates, beside torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.jobs.specs import EvaluationOptions, Optimization, Schedule
from finetuned_service.training.schedule import Plan


def plan(evaluations: int = 4, **settings: object) -> Plan:
    resolved = {"max_steps": 20, "learning_rate": 1e-3, "checkpoint_interval_steps": 6, **settings}
    return Plan.of(Optimization.model_validate(resolved), EvaluationOptions(evaluations=evaluations))


def test_evaluations_are_spread_and_the_last_step_is_one_of_them():
    assert sorted(plan(4).evaluation_steps) == [5, 10, 15, 20]
    assert sorted(plan(0).evaluation_steps) == [20]
    assert sorted(plan(100, max_steps=3).evaluation_steps) == [1, 2, 3]


def test_checkpoints_are_kept_at_intervals_and_at_evaluations():
    kept = [step for step in range(1, 21) if plan(2).keeps_after(step)]
    assert kept == [6, 10, 12, 18, 20]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_warm_up_rises_to_the_peak_and_every_step_has_an_effect(schedule):
    made = plan(schedule=schedule, warmup_fraction=0.2)
    rates = [made.learning_rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert min(rates) > 0
    assert sorted(rates[4:], reverse=True) == rates[4:]


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [
        (Schedule.CONSTANT, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (Schedule.LINEAR, lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=20)),
        (Schedule.COSINE, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    ],
)
def test_shapes_are_those_of_torch(schedule, oracle):
    made = plan(schedule=schedule, warmup_fraction=0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-3)
    scheduler = oracle(optimizer)
    expected = []
    for _ in range(20):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [made.learning_rate(step) for step in range(20)] == pytest.approx(expected)


def test_unresolved_settings_are_a_fault_of_ours():
    with pytest.raises(ValueError, match="not resolved"):
        Plan.of(Optimization(), EvaluationOptions())
