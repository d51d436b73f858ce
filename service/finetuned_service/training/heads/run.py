"""One TrainJob that ends in a head, alone or over a method on the base, from its task to its result.

Such training is short; a killed process begins its evaluations anew and its training at the last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from finetuned_service.adapters.files import stored_head
from finetuned_service.adapters.head import Head
from finetuned_service.bases.device import resolve_device
from finetuned_service.engine.encoders.model import EncoderModel
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.events import Environment, EvaluationFinished, Notice
from finetuned_service.jobs.pace import Phase
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, TrainTask
from finetuned_service.jobs.values import EvaluationSample
from finetuned_service.training.adapter import ENCODER_TASK_TYPE, adapter_handle, read_adapter, write_adapter
from finetuned_service.training.attempt import Attempt
from finetuned_service.training.checkpoint import RunState
from finetuned_service.training.heads.adapted import AdaptedEncoder
from finetuned_service.training.heads.evaluate import (
    HeadResult,
    answered,
    expected_answer,
    in_order_of,
    scored,
    why_incomparable,
    without_looking,
)
from finetuned_service.training.heads.examples import HeadData, read_head_data
from finetuned_service.training.heads.features import features_of
from finetuned_service.training.heads.measure import measure
from finetuned_service.training.heads.model import HeadModel
from finetuned_service.training.heads.weights import told
from finetuned_service.training.loop import Ended
from finetuned_service.training.stages import finish, sample
from finetuned_service.training.trainable import TrainRow
from finetuned_service.vocabulary import Method, Task


@dataclass(frozen=True, slots=True)
class _Job:
    task: TrainTask
    data: HeadData
    environment: Environment
    digest: str
    report: ReportFunction
    stop: StopFlag

    @property
    def work(self) -> Path:
        return Path(self.task.work_directory)

    @property
    def base(self) -> Path:
        return Path(self.task.base_directory)


def run_head(
    task: TrainTask, environment: Environment, digest: str, report: ReportFunction, stop: StopFlag
) -> int:
    """Do the job; returns an exit code of `jobs/task.py`.

    Args:
        task: of classification.
        environment: what repeatability depends on.
        digest: what checkpoints in the work directory belong to.
        report: takes what the job says.
        stop: asks the job to end.

    Raises:
        Stopped: it was asked to end before its first step, or after its last.
        FinetunedError: the data or the settings cannot be trained on.
    """
    eval_path = Path(task.eval_path) if task.eval_path else None
    data = read_head_data(task.spec, Path(task.base_directory), Path(task.train_path), eval_path, stop=stop)
    report(Prepared(environment=environment, data_report=data.report))
    if data.weights is not None:
        report(Notice(text=told(data.weights, data.head)))
    job = _Job(task, data, environment, digest, report, stop)
    _refuse_other_head(job)
    baseline = _baseline(job)
    incumbent = _incumbent(job)
    ended, state = _train(job)
    if ended is Ended.STOPPED:
        return EXIT_STOPPED
    adapter = _measured(job, "adapter", job.work / "adapter", state.chosen_step)
    finish(
        task,
        job.work / "adapter",
        report,
        adapter=adapter,
        baseline=baseline,
        incumbent=incumbent,
        samples=_samples(job, baseline, adapter),
        step=state.step,
        stopped_early=ended is Ended.EARLY,
        confusion=adapter.confusion if adapter else None,
    )
    return EXIT_FINISHED


def _baseline(job: _Job) -> HeadResult | None:
    if not job.data.heldout:
        return None
    outputs = without_looking(job.data.train, job.data.heldout, job.data.head)
    return _told(job, "baseline", scored(outputs, job.data.heldout, job.data.head, job.data.unit))


def _incumbent(job: _Job) -> HeadResult | None:
    """The figures of the version that `promote_if` compares with, where it answers in the same labels."""
    directory = job.task.incumbent_directory
    if not directory:
        return None
    own = stored_head(Path(directory))
    why_not = why_incomparable(own, job.data.head)
    if own is None or why_not:
        text = f"the incumbent {why_not}, so its figures cannot be compared with the new version's"
        job.report(Notice(severity="WARNING", text=text))
        return None
    return _measured(job, "incumbent", Path(directory), 0, own)


def _refuse_other_head(job: _Job) -> None:
    """Weights to continue answer in the labels that they were trained with."""
    directory = job.task.start_directory
    if directory and stored_head(Path(directory)) != job.data.head:
        raise InvalidField.one(
            "spec.continue_from",
            "names a head of another task, other labels or another pooling than this job's rows have; train without it",
        )


def _measured(
    job: _Job, subject: str, directory: Path, step: int, own: Head | None = None
) -> HeadResult | None:
    """`own` is the head of who answers, where it is not the job's."""
    if not job.data.heldout:
        return None
    name = "evaluating" if subject == "adapter" else subject
    phase = Phase(name, len(job.data.heldout), job.report, job.stop)
    handle = adapter_handle(directory, job.base)
    head = own or job.data.head
    threads, device = job.task.limits.threads, job.task.device
    outputs = answered(job.base, handle, job.data.heldout, head, threads, device, phase)
    outputs = in_order_of(job.data.head, head, outputs)
    return _told(job, subject, scored(outputs, job.data.heldout, job.data.head, job.data.unit), step)


def _told(job: _Job, subject: str, result: HeadResult, step: int = 0) -> HeadResult:
    finished = {
        "subject": subject,
        "step": step,
        "metrics": result.metrics,
        "confusion": result.confusion,
    }
    job.report(EvaluationFinished.model_validate(finished))
    return result


def _train(job: _Job) -> tuple[Ended, RunState]:
    """Train to the end or until told to stop; at the end the adapter lies in its directory."""
    model, seconds_afterwards = _model(job)
    images = job.task.spec.task is Task.IMAGE_CLASSIFICATION
    task_type = None if images else ENCODER_TASK_TYPE

    def read(directory: Path) -> None:
        read_adapter(directory, model)
        model.head.take_stored()

    attempt = Attempt(
        task=job.task,
        environment=job.environment,
        digest=job.digest,
        model=model,
        write=lambda directory: write_adapter(
            directory,
            model.head.stored(model.installed),
            job.task.spec.base,
            torch.float32,
            task_type=task_type,
        ),
        train_rows=job.data.train,
        heldout_rows=job.data.heldout,
        report=job.report,
        stop=job.stop,
        read=read,
        measure=partial(measure, model, job.data.head, job.data.unit),
    )
    return attempt.run(seconds_afterwards=seconds_afterwards)


def _model(job: _Job) -> tuple[HeadModel | AdaptedEncoder, float | None]:
    """What trains, and how long the held-out rows will take afterwards; see `Attempt.run`."""
    spec, data, device = job.task.spec, job.data, resolve_device(job.task.device)
    if spec.method is not Method.HEAD:
        model = AdaptedEncoder.load(job.base, spec, data.head, data.weights, device, data.unit)
        return model, None
    started = time.perf_counter()
    examples = [*data.train, *data.heldout]
    phase = Phase("encoding", len(examples), job.report, job.stop)
    found = features_of(EncoderModel.load(job.base, device=device), examples, data.head, phase)
    features = {number: rows.clone() for number, rows in found}
    model = HeadModel(data.head, features, data.weights, data.unit)
    # A head trains on what its base has made of the rows, and is measured on the held-out ones themselves.
    share = _tokens(data.heldout) / _tokens(examples)
    return model, share * (time.perf_counter() - started)


def _tokens(rows: Sequence[TrainRow]) -> int:
    return sum(len(row.token_ids) for row in rows)


def _samples(
    job: _Job, baseline: HeadResult | None, adapter: HeadResult | None
) -> tuple[EvaluationSample, ...]:
    if baseline is None or adapter is None:
        return ()
    found = zip(job.data.heldout, baseline.answers, adapter.answers, strict=True)
    return tuple(
        sample(
            prompt=example.shown,
            expected=(expected := expected_answer(example, job.data.head)),
            baseline=plain,
            answer=answer,
            correct=answer == expected,
        )
        for example, plain, answer in found
    )
