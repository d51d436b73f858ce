"""What a job is expected to take, as its probe measured it: told, and refused where it does not fit."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from finetuned_service.bases.manifest import WEIGHTS_FILE
from finetuned_service.jobs.estimate import device_refusal, refuse_over_budget
from finetuned_service.jobs.events import Estimate, EstimateBasis, Notice
from finetuned_service.jobs.memory import MEMORY
from finetuned_service.jobs.process import ReportFunction
from finetuned_service.jobs.task import Estimated, TaskLimits, TrainTask
from finetuned_service.training.cuda import memory_room
from finetuned_service.training.probe import Probed
from finetuned_service.training.schedule import Plan
from finetuned_service.training.trainable import Parameters


def tell_estimate(
    probed: Probed,
    plan: Plan,
    task: TrainTask,
    seconds_afterwards: float,
    memory_afterwards_bytes: int,
    report: ReportFunction,
) -> None:
    """Report the estimate of a job whose process has just probed it.

    Args:
        probed: by this process.
        plan: of all its steps.
        task: with its limits.
        seconds_afterwards: what the job will do after the last step.
        memory_afterwards_bytes: what that will hold beside what this process holds now.
        report: takes Estimated and Notice.

    Raises:
        ResourceExhausted: it needs more memory than it may have.
    """
    held_bytes = MEMORY.look()
    checkpoints = sum(plan.keeps_after(step) for step in range(1, plan.total_steps + 1))
    evaluations = len(plan.evaluation_steps)
    estimate = Estimate(
        steps=plan.total_steps,
        tokens=probed.tokens,
        memory_bytes=max(MEMORY.peak_bytes, held_bytes + memory_afterwards_bytes),
        duration_seconds=_age_seconds()
        + probed.training_seconds
        + evaluations * probed.evaluation_seconds
        + checkpoints * probed.checkpoint_seconds
        + seconds_afterwards,
        basis=EstimateBasis.MEASURED,
        runtime_memory_bytes=MEMORY.runtime_bytes,
        base_memory_bytes=(Path(task.base_directory) / WEIGHTS_FILE).stat().st_size,
        memory_budget_bytes=task.limits.memory_budget_bytes,
        device_memory_budget_bytes=task.limits.device_budget_bytes if MEMORY.device_peak() else 0,
        device_memory_bytes=MEMORY.device_peak(),
    )
    report(Estimated(estimate=estimate))
    report(Notice(text=_text(estimate, probed)))
    refuse_over_budget(estimate)


def refuse_without_device_room(model: Parameters, limits: TaskLimits) -> None:
    """Refuse what cannot train on a GPU even one row at a time; a CPU's memory is compared where the job is submitted.

    Raises:
        ResourceExhausted: gradients and two moments of each parameter do not fit beside what is held there, the
            parameters among it.
    """
    there = [parameter for _, parameter in model.named_parameters() if parameter.device.type != "cpu"]
    if not there:
        return
    held_bytes, allowed_bytes = memory_room(there[0].device, limits)
    needed_bytes = held_bytes + sum(3 * parameter.nbytes for parameter in there)
    if needed_bytes > allowed_bytes:
        bound = "job_device_bytes" if limits.device_budget_bytes else "what is free there"
        raise device_refusal(needed_bytes, allowed_bytes, bound)


def _text(estimate: Estimate, probed: Probed) -> str:
    minutes, seconds = divmod(round(estimate.duration_seconds or 0.0), 60)
    device_bytes = estimate.device_memory_bytes
    on_gpu = f" and {device_bytes / 1e6:,.0f} MB on the GPU" if device_bytes else ""
    return (
        f"expected: {minutes}:{seconds:02} in all, at most {estimate.memory_bytes / 1e6:,.0f} MB of memory of its own "
        f"(allowed: {estimate.memory_budget_bytes / 1e6:,.0f} MB){on_gpu}; measured in {probed.steps} of its steps, which were "
        "undone"
    )


def _age_seconds() -> float:
    """How long this process has run."""
    return time.time() - psutil.Process().create_time()
