"""One TrainJob that makes vectors of texts, from its task to its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from finetuned_service.adapters.files import stored_head
from finetuned_service.bases.device import resolve_device
from finetuned_service.jobs.events import Environment, EvaluationFinished, Notice
from finetuned_service.jobs.pace import Phase
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, TrainTask
from finetuned_service.jobs.values import EvaluationSample
from finetuned_service.training.adapter import ENCODER_TASK_TYPE, adapter_handle, write_adapter
from finetuned_service.training.attempt import Attempt
from finetuned_service.training.checkpoint import RunState
from finetuned_service.training.embeddings.evaluate import PairResult, measured, texts_of
from finetuned_service.training.embeddings.model import EmbeddingModel
from finetuned_service.training.embeddings.pairs import EmbeddingData, PairExample, read_embedding_data
from finetuned_service.training.loop import Ended
from finetuned_service.training.stages import finish, sample


@dataclass(frozen=True, slots=True)
class _Job:
    task: TrainTask
    data: EmbeddingData
    environment: Environment
    digest: str
    report: ReportFunction
    stop: StopFlag

    @property
    def base(self) -> Path:
        return Path(self.task.base_directory)

    @property
    def adapter_directory(self) -> Path:
        return Path(self.task.work_directory) / "adapter"


def run_embeddings(
    task: TrainTask, environment: Environment, digest: str, report: ReportFunction, stop: StopFlag
) -> int:
    """Do the job; returns an exit code of `jobs/task.py`. Arguments as of `heads.run.run_head`.

    Raises:
        Stopped: it was asked to end before its first step, or after its last.
        FinetunedError: the data or the settings cannot be trained on.
    """
    eval_path = Path(task.eval_path) if task.eval_path else None
    data = read_embedding_data(task.spec, Path(task.base_directory), Path(task.train_path), eval_path, stop)
    report(Prepared(environment=environment, data_report=data.report))
    job = _Job(task, data, environment, digest, report, stop)
    baseline = _measured(job, "baseline", None)
    incumbent = _incumbent(job)
    ended, state = _train(job)
    if ended is Ended.STOPPED:
        return EXIT_STOPPED
    adapter = _measured(job, "adapter", job.adapter_directory, state.chosen_step)
    finish(
        task,
        job.adapter_directory,
        report,
        adapter=adapter,
        baseline=baseline,
        incumbent=incumbent,
        samples=_samples(job, baseline, adapter),
        step=state.step,
        stopped_early=ended is Ended.EARLY,
    )
    return EXIT_FINISHED


def _incumbent(job: _Job) -> PairResult | None:
    """The figures of the version that `promote_if` compares with, where it makes vectors."""
    if not job.task.incumbent_directory:
        return None
    directory = Path(job.task.incumbent_directory)
    if stored_head(directory) is not None:
        text = "the incumbent has a head, so its figures cannot be compared with the new version's"
        job.report(Notice(severity="WARNING", text=text))
        return None
    return _measured(job, "incumbent", directory)


def _measured(job: _Job, subject: str, directory: Path | None, step: int = 0) -> PairResult | None:
    """The figures of an adapter, or of the plain base without one; None without held-out rows."""
    if not job.data.heldout:
        return None
    name = "evaluating" if subject == "adapter" else subject
    phase = Phase(name, len(texts_of(job.data.heldout)), job.report, job.stop)
    handle = adapter_handle(directory, job.base) if directory else None
    result = measured(
        job.base, handle, job.data.heldout, job.data.pooling, job.task.limits.threads, job.task.device, phase
    )
    finished = {"subject": subject, "step": step, "metrics": result.metrics}
    job.report(EvaluationFinished.model_validate(finished))
    return result


def _train(job: _Job) -> tuple[Ended, RunState]:
    """Train to the end or until told to stop; at the end the adapter lies in its directory."""
    spec = job.task.spec
    device = resolve_device(job.task.device)
    model = EmbeddingModel.load(job.base, spec, job.data.pooling, device, job.task.micro_batch_rows)
    attempt = Attempt(
        task=job.task,
        environment=job.environment,
        digest=job.digest,
        model=model,
        write=lambda directory: write_adapter(
            directory, model.installed, spec.base, torch.float32, task_type=ENCODER_TASK_TYPE
        ),
        train_rows=job.data.train,
        heldout_rows=job.data.heldout,
        report=job.report,
        stop=job.stop,
        measure=model.measure,
        whole_batches=True,
    )
    return attempt.run()


def _samples(
    job: _Job, baseline: PairResult | None, adapter: PairResult | None
) -> tuple[EvaluationSample, ...]:
    if baseline is None or adapter is None:
        return ()
    found = zip(job.data.heldout, baseline.answers, adapter.answers, adapter.correct, strict=True)
    return tuple(_sample(row, plain, answer, correct=correct) for row, plain, answer, correct in found)


def _sample(row: PairExample, plain: str, answer: str, *, correct: bool) -> EvaluationSample:
    prompt, expected = row.texts[0], row.texts[1]
    if row.score is not None:
        prompt, expected = f"{prompt} | {expected}", f"{row.score:.3f}"
    return sample(prompt=prompt, expected=expected, baseline=plain, answer=answer, correct=correct)
