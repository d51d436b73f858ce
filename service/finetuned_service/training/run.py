"""One TrainJob from its task to its result: data, baseline, training, evaluation, adapter.

Every part leaves its outcome in the work directory before the next begins, so a process that is
killed anywhere and started again with the same task repeats only what it had not finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import logging as transformers_logging

from finetuned_service._version import VERSION
from finetuned_service.bases.device import instruction_set, resolve_device
from finetuned_service.bases.family import context_of
from finetuned_service.bases.manifest import compute_dtype, read_config
from finetuned_service.jobs.events import Environment, EvaluationFinished, Notice, Progress
from finetuned_service.jobs.memory import memory_report, private_memory_bytes
from finetuned_service.jobs.methods import CLASSIFICATION_TASKS
from finetuned_service.jobs.pace import Stopped
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.specs import DpoSettings, TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, TrainTask
from finetuned_service.jobs.values import EvaluationSample
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.adapter import adapter_handle, read_adapter, write_adapter
from finetuned_service.training.attempt import Attempt
from finetuned_service.training.checkpoint import MEANING_OF_CHECKPOINTS, RunState
from finetuned_service.training.cuda import memory_room, prepare_device
from finetuned_service.training.data import JobData, read_job_data
from finetuned_service.training.embeddings.run import run_embeddings
from finetuned_service.training.evaluate import (
    Evaluated,
    Evaluator,
    Scoring,
    Subject,
    TokenScoring,
)
from finetuned_service.training.forgetting import WithGeneralText, forgotten, general_rows
from finetuned_service.training.heads.run import run_head
from finetuned_service.training.loop import Ended, HeldOut
from finetuned_service.training.model import AdaptedModel, load_model
from finetuned_service.training.order import MICRO_BATCH_TOKENS
from finetuned_service.training.preferences.model import PreferenceModel
from finetuned_service.training.preferences.pairs import PairData, read_pair_data
from finetuned_service.training.preferences.reference import with_reference
from finetuned_service.training.preferences.scoring import PairScoring
from finetuned_service.training.questions import Question, matches, questions
from finetuned_service.training.stages import finish, sample
from finetuned_service.training.tensorboard import TensorBoardLog
from finetuned_service.training.trainable import Trainable
from finetuned_service.vocabulary import Objective, Task

SHOWN_ANSWERS = 8
"""To held-out preferences: no figure is made of them, but they tell what the adapter has become."""

TRAINED_DTYPE = "float32"
"""Parameters that train, their gradients and the optimizer's state, whatever a base computes in."""

SAFE_SHARE = 0.8
"""Of the memory budget; what a step needs beside what layers keep is not computed beforehand."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What all parts of one job need."""

    task: TrainTask
    tokenizer: BaseTokenizer
    data: JobData | PairData
    asked: list[Question]
    environment: Environment
    report: ReportFunction
    stop: StopFlag

    @property
    def spec(self) -> TrainSpec:
        return self.task.spec

    @property
    def work_directory(self) -> Path:
        return Path(self.task.work_directory)

    @property
    def adapter_directory(self) -> Path:
        """Where the result lies until it is published."""
        return self.work_directory / "adapter"

    @property
    def digest(self) -> str:
        """What the checkpoints and evaluations in the work directory belong to."""
        return _digest(self.task)


def run(task: TrainTask, report: ReportFunction, stop: StopFlag) -> int:
    """Do the job; returns an exit code of `jobs/task.py`.

    Raises:
        FinetunedError: the data or the settings cannot be trained on.
    """
    try:
        if not task.log_directory:
            return _run(task, report, stop)
        with TensorBoardLog(Path(task.log_directory), report) as log:
            return _run(task, log, stop)
    except Stopped:
        return EXIT_STOPPED


def _run(task: TrainTask, report: ReportFunction, stop: StopFlag) -> int:
    torch.set_num_threads(task.limits.threads)
    prepare_device(task, report)
    transformers_logging.disable_progress_bar()
    if task.spec.task is Task.FEATURE_EXTRACTION:
        report(Progress(phase="preparing"))
        return run_embeddings(task, _environment(task), _digest(task), report, stop)
    if task.spec.task in CLASSIFICATION_TASKS:
        report(Progress(phase="preparing"))
        return run_head(task, _environment(task), _digest(task), report, stop)
    job = _prepare(task, report, stop)
    reference = _continued_reference(job)
    baseline = _evaluate(job, "baseline", reference=reference)
    reference = reference or baseline
    incumbent = (
        _evaluate(job, "incumbent", Path(task.incumbent_directory), reference=reference)
        if task.incumbent_directory
        else None
    )
    ended, state = _train(job, baseline)
    if ended is Ended.STOPPED:
        return EXIT_STOPPED
    adapter = _evaluate(job, "adapter", job.adapter_directory, state.chosen_step, reference=reference)
    if baseline and adapter and (notice := forgotten(baseline.metrics, adapter.metrics)):
        report(notice)
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


def _prepare(task: TrainTask, report: ReportFunction, stop: StopFlag) -> _Job:
    report(Progress(phase="preparing"))
    tokenizer = BaseTokenizer.load(Path(task.base_directory))
    eval_path = Path(task.eval_path) if task.eval_path else None
    pairs = task.spec.objective is Objective.DPO
    read = read_pair_data if pairs else read_job_data
    data = read(task.spec, tokenizer, Path(task.train_path), eval_path, stop)
    environment = _environment(task)
    report(Prepared(environment=environment, data_report=data.report))
    wanted = task.spec.evaluation.generation_rows
    asked = questions(
        [example.row for example in data.heldout], min(wanted, SHOWN_ANSWERS) if pairs else wanted
    )
    return _Job(task, tokenizer, data, asked, environment, report, stop)


def _digest(task: TrainTask) -> str:
    data = (task.base_digest, task.train_digest, task.eval_digest)
    parts = (MEANING_OF_CHECKPOINTS, task.spec.model_dump_json(), *data)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _environment(task: TrainTask) -> Environment:
    return Environment(
        base_digest=task.base_digest,
        dataset_digest=task.train_digest,
        eval_dataset_digest=task.eval_digest,
        service_version=VERSION,
        torch_version=torch.__version__,
        instruction_set=instruction_set(resolve_device(task.device)),
        threads=torch.get_num_threads(),
        compute_dtype=compute_dtype(Path(task.base_directory)),
        trained_dtype=TRAINED_DTYPE,
    )


def _continued_reference(job: _Job) -> Evaluated | None:
    """What preferences are measured against where it is not the plain base: the version that is continued."""
    if isinstance(job.data, PairData) and job.task.start_directory:
        return _measure(job, "reference", Path(job.task.start_directory))
    return None


def _evaluate(
    job: _Job,
    subject: Literal["baseline", "incumbent", "adapter"],
    directory: Path | None = None,
    step: int = 0,
    reference: Evaluated | None = None,
) -> Evaluated | None:
    """What `subject` does on the held-out rows, told as an event; see `_measure`."""
    evaluated = _measure(job, subject, directory, reference)
    if evaluated is not None:
        job.report(EvaluationFinished(subject=subject, step=step, metrics=evaluated.metrics))
    return evaluated


def _measure(
    job: _Job, subject: Subject, directory: Path | None, reference: Evaluated | None = None
) -> Evaluated | None:
    """What `subject` does on the held-out rows, from the work directory if it is known; None without rows.

    `reference` is what preferences are measured against.
    """
    if not job.data.heldout:
        return None
    base_directory = Path(job.task.base_directory)
    adapter = adapter_handle(directory, base_directory) if directory else None
    evaluator = Evaluator(
        tokenizer=job.tokenizer,
        base_directory=base_directory,
        cache_directory=job.task.cache_directory,
        device=job.task.device,
        compute="auto",
        threads=job.task.limits.threads,
        options=job.spec.evaluation,
        scoring=_scoring(job, reference),
        # What a reference would say is shown nowhere.
        asked=[] if subject == "reference" else job.asked,
        report=job.report,
        stop=job.stop,
    )
    return evaluator.evaluate_once(subject, adapter, job.work_directory / f"{subject}.json", job.digest)


def _scoring(job: _Job, reference: Evaluated | None) -> Scoring:
    if isinstance(job.data, PairData):
        pairs = [example.encoded for example in job.data.heldout]
        before = reference.log_probabilities if reference else None
        own: Scoring = PairScoring(pairs, job.spec.dpo or DpoSettings(), before)
    else:
        own = TokenScoring([example.row for example in job.data.heldout], job.asked)
    context_tokens = context_of(read_config(Path(job.task.base_directory)))
    return WithGeneralText(own, general_rows(job.tokenizer, context_tokens))


def _train(job: _Job, baseline: Evaluated | None) -> tuple[Ended, RunState]:
    """Train to the end or until told to stop; at the end the adapter lies in its directory, and will be measured as the
    plain base was.
    """
    base, device = Path(job.task.base_directory), resolve_device(job.task.device)
    model = load_model(base, job.spec, job.task.cache_directory, device)
    _choose_checkpointing(job, model)
    learner, train_rows, heldout_rows, measure = _learning(job, model)
    attempt = Attempt(
        task=job.task,
        environment=job.environment,
        digest=job.digest,
        model=learner,
        write=lambda directory: write_adapter(directory, model.method, job.spec.base, model.head.dtype),
        train_rows=train_rows,
        heldout_rows=heldout_rows,
        report=job.report,
        stop=job.stop,
        measure=measure,
    )
    ended = attempt.run(
        seconds_afterwards=baseline.seconds if baseline else 0.0,
        memory_afterwards_bytes=baseline.memory_bytes if baseline else 0,
    )
    _tell_memory(job)
    return ended


def _learning(
    job: _Job, model: AdaptedModel
) -> tuple[Trainable[Any], list[Any], list[Any], Callable[[Any], HeldOut] | None]:
    """What learns by the job's objective, from which rows, what is held out of them, and how that is measured."""
    train, heldout = ([example.encoded for example in part] for part in (job.data.train, job.data.heldout))
    if not isinstance(job.data, PairData):
        return model, train, heldout, None
    if job.task.start_directory:
        # The reference is what training begins with.
        read_adapter(Path(job.task.start_directory), model)
    pairs = [example.encoded for example in (*job.data.train, *job.data.heldout)]
    kept = job.work_directory / "reference.safetensors"
    referenced = with_reference(model, pairs, kept, job.digest, job.report, job.stop)
    learner = PreferenceModel(model, job.spec.dpo or DpoSettings())
    return learner, referenced[: len(train)], referenced[len(train) :], learner.measure


def _choose_checkpointing(job: _Job, model: AdaptedModel) -> None:
    """Keep less of each layer where the settings say so, or where memory is short and they say nothing."""
    wanted = job.spec.optimization.activation_checkpointing
    held_bytes, budget_bytes = memory_room(model.frozen_head.device, job.task.limits)
    longest = max(len(example.encoded.token_ids) for example in job.data.train)
    tokens = max(longest, min(MICRO_BATCH_TOKENS, longest * job.spec.optimization.batch_rows))
    state = sum(3 * parameter.nbytes for _, parameter in model.named_parameters())  # gradient, two moments
    expected_bytes = held_bytes + state + model.kept_bytes(tokens)
    if wanted is None:
        wanted = expected_bytes > SAFE_SHARE * budget_bytes
        if wanted:
            text = (
                f"activation checkpointing is on: without it the job would hold some {expected_bytes / 1e6:,.0f} "
                f"MB, and {budget_bytes / 1e6:,.0f} MB are allowed. Steps take up to a third longer"
            )
            job.report(Notice(text=text))
    if wanted:
        model.checkpoint_activations()


def _tell_memory(job: _Job) -> None:
    weights = str(Path(job.task.base_directory).resolve() / "model.safetensors")
    shared = "; ".join(str(mapping) for mapping in memory_report() if mapping.path == weights)
    private = f"{private_memory_bytes() / 1e6:,.0f} MB of memory of its own"
    job.report(Notice(text=f"memory after training: {private}; {shared or 'the base is not mapped'}"))


def _samples(
    job: _Job, baseline: Evaluated | None, adapter: Evaluated | None
) -> tuple[EvaluationSample, ...]:
    if baseline is None or adapter is None:
        return ()
    answers = zip(job.asked, baseline.answers, adapter.answers, strict=True)
    return tuple(
        sample(
            prompt=question.prompt,
            expected=question.expected,
            baseline=plain,
            answer=answer,
            correct=matches(answer, question.expected),
        )
        for question, plain, answer in answers
    )
