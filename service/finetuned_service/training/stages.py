"""What every TrainJob tells at its turns, whatever it trains: prepared, begun again, finished."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from finetuned_service.jobs.events import Environment, Notice, Progress
from finetuned_service.jobs.process import ReportFunction
from finetuned_service.jobs.task import TrainFinished, TrainTask
from finetuned_service.jobs.values import EvaluationSample
from finetuned_service.storage.files import publish_directory
from finetuned_service.training.checkpoint import RunState
from finetuned_service.vocabulary import ConfusionMatrix, Metric

MAX_SAMPLES = 100
"""Held-out rows that the result shows with their answers."""
SHOWN_CHARACTERS = 2000
"""Of each of their texts: they are told again with the job by every call, and a job's last report is one line."""


def begin(kept: RunState | None, digest: str, environment: Environment, report: ReportFunction) -> RunState:
    """The state to go on from, told to the user where it is not the beginning.

    Args:
        kept: of the last checkpoint, None if there is none.
        digest: what the job's checkpoints belong to.
        environment: as it is now.
        report: takes a Notice.
    """
    if kept is None:
        return RunState(task_digest=digest, environment=environment)
    text = f"goes on from the checkpoint after step {kept.step}"
    if kept.environment == environment:
        report(Notice(text=text))
    else:
        text += (
            "; torch, instruction set, threads or service differ from those it was written with, so the "
            "result will not equal an uninterrupted run's to the last digit"
        )
        report(Notice(severity="WARNING", text=text))
    return kept.model_copy(update={"environment": environment})


def sample(
    *, prompt: str, expected: str, baseline: str, answer: str, correct: bool = False
) -> EvaluationSample:
    """A held-out row for people, its texts as long as they are shown; `correct` was found of the whole ones."""
    return EvaluationSample(
        prompt=_shown(prompt),
        expected=_shown(expected),
        baseline=_shown(baseline),
        answer=_shown(answer),
        correct=correct,
    )


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


class Measured(Protocol):
    """What one subject did on the held-out rows."""

    @property
    def metrics(self) -> tuple[Metric, ...]: ...


def finish(
    task: TrainTask,
    adapter_directory: Path,
    report: ReportFunction,
    *,
    adapter: Measured | None,
    baseline: Measured | None,
    incumbent: Measured | None,
    samples: tuple[EvaluationSample, ...],
    step: int,
    stopped_early: bool,
    confusion: ConfusionMatrix | None = None,
) -> None:
    """Publish the adapter as the task's output, and tell the end; a subject is None where it was not measured.

    `step` is the last one that was trained, `confusion` of the adapter.
    """
    report(Progress(phase="storing"))
    publish_directory(adapter_directory, Path(task.output_directory))
    report(
        TrainFinished(
            metrics=adapter.metrics if adapter else (),
            baseline_metrics=baseline.metrics if baseline else (),
            incumbent_metrics=incumbent.metrics if incumbent else (),
            samples=samples[:MAX_SAMPLES],
            step=step,
            stopped_early=stopped_early,
            confusion=confusion,
        )
    )
