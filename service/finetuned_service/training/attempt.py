"""The training part of one TrainJob, whatever it trains: from its last checkpoint, or the weights it continues from,
to an adapter in the work directory, or to the last good one where the loss diverged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from finetuned_service.errors import TrainingDiverged
from finetuned_service.jobs.events import Environment, Progress
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.room import Room
from finetuned_service.jobs.specs import Optimization
from finetuned_service.jobs.task import Suspended, TrainTask
from finetuned_service.storage.files import publish_directory, says_full_disk
from finetuned_service.training.adapter import read_adapter
from finetuned_service.training.checkpoint import DESCRIPTION_BYTES, CheckpointStore, RunState
from finetuned_service.training.estimate import refuse_without_device_room, tell_estimate
from finetuned_service.training.loop import Ended, HeldOut, Trainer
from finetuned_service.training.order import MICRO_BATCH_TOKENS
from finetuned_service.training.probe import Probed, probe, scratch_checkpoints, without_effect
from finetuned_service.training.schedule import Plan
from finetuned_service.training.stages import begin
from finetuned_service.training.trainable import R, Trainable

WriteFunction = Callable[[Path], None]
"""Writes the model's adapter as it is now into a directory that exists."""
ReadFunction = Callable[[Path], None]
"""Makes the model's adapter that of a directory, or raises InvalidField."""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[R]):
    """Everything that one attempt trains with."""

    task: TrainTask
    environment: Environment
    digest: str
    """What the checkpoints in the work directory belong to."""
    model: Trainable[R]
    write: WriteFunction
    train_rows: Sequence[R]
    heldout_rows: Sequence[R]
    report: ReportFunction
    stop: StopFlag
    read: ReadFunction | None = None
    """None puts the tensors of the files into the model's parameters."""
    measure: Callable[[Sequence[R]], HeldOut] | None = None
    """Of held-out rows; None measures the loss alone."""
    whole_batches: bool = False
    """See `Trainer`."""

    @property
    def adapter_directory(self) -> Path:
        """Where the result lies until it is published."""
        return Path(self.task.work_directory) / "adapter"

    @property
    def _room(self) -> Room:
        return Room(Path(self.task.work_directory), self.task.limits.reserved_disk_bytes)

    def run(
        self, *, seconds_afterwards: float | None = None, memory_afterwards_bytes: int = 0
    ) -> tuple[Ended, RunState]:
        """Train to the end or until told to stop; at the end the best adapter lies in its directory.

        Args:
            seconds_afterwards: what the job will do after the last step, for the expected time; None is as much as an
                evaluation between steps.
            memory_afterwards_bytes: what that will hold beside the model that has been trained.

        Raises:
            TrainingDiverged: naming what was kept.
            InvalidField: the weights to continue from have other tensors.
            ResourceExhausted: checkpoints have no room.
            NoRoom: the disk has none for what is written next.
        """
        task, spec = self.task, self.task.spec
        checkpoints = CheckpointStore(
            Path(task.work_directory) / "checkpoints",
            kept=spec.optimization.kept_checkpoints,
            budget_bytes=task.limits.checkpoint_bytes,
            report=self.report,
            room=self._room,
        )
        if task.start_directory:
            self._read(Path(task.start_directory))
        checkpoints.refuse_over_budget(self.model)
        refuse_without_device_room(self.model, task.limits)
        state = begin(checkpoints.latest(self.digest), self.digest, self.environment, self.report)
        plan = Plan.of(spec.optimization, spec.evaluation)
        probes = bool(task.probe_steps or task.pause_after_estimate) and not state.step
        if state.step < plan.total_steps:
            # Before hours of steps, not after; a probe writes two of its own.
            checkpoints.refuse_without_room(state, self.model, copies=2 if probes else 1)
        if probes:
            probed = self._probe(state, seconds_afterwards, memory_afterwards_bytes)
            if probed and task.pause_after_estimate:
                text = "paused before its first step, to show what it will take: ResumeJob lets it begin"
                self.report(Suspended(reason="ESTIMATED", text=text))
                return Ended.STOPPED, state
            if probed and seconds_afterwards is None:
                seconds_afterwards = probed.evaluation_seconds
        trainer = self._trainer(plan, state, checkpoints, self.report, seconds_afterwards or 0.0)
        try:
            ended = trainer.run()
        except TrainingDiverged as error:
            raise self._keep_last_good(checkpoints, error) from error
        if ended is not Ended.STOPPED:
            self._write(checkpoints, trainer.state.chosen_step)
        return ended, trainer.state

    def _read(self, directory: Path) -> None:
        if self.read is None:
            read_adapter(directory, self.model)
        else:
            self.read(directory)

    def _trainer(
        self,
        plan: Plan,
        state: RunState,
        checkpoints: CheckpointStore,
        report: ReportFunction,
        seconds_afterwards: float = 0.0,
    ) -> Trainer[R]:
        spec = self.task.spec
        return Trainer(
            self.model,
            self._fewer_at_once(spec.optimization),
            plan,
            patience=spec.evaluation.early_stopping_patience,
            train_rows=self.train_rows,
            heldout_rows=self.heldout_rows,
            checkpoints=checkpoints,
            report=report,
            stop=self.stop,
            state=state,
            seconds_afterwards=seconds_afterwards,
            measure=self.measure,
            whole_batches=self.whole_batches,
        )

    def _probe(
        self, state: RunState, seconds_afterwards: float | None, memory_afterwards_bytes: int
    ) -> Probed | None:
        """Tell what the job will take, from a few steps that leave no trace; None if they could not be measured, and
        the run itself will say why.

        Raises:
            ResourceExhausted: more memory than it may have.
        """
        self.report(Progress(phase="probing"))
        plan = Plan.of(self.task.spec.optimization, self.task.spec.evaluation)
        with scratch_checkpoints(Path(self.task.work_directory) / "probe") as checkpoints:
            trainer = self._trainer(without_effect(plan), state, checkpoints, lambda _: None)
            probed = probe(trainer, self.task.probe_steps)
        if probed is not None:
            afterwards = probed.evaluation_seconds if seconds_afterwards is None else seconds_afterwards
            tell_estimate(probed, plan, self.task, afterwards, memory_afterwards_bytes, self.report)
        return probed

    def _fewer_at_once(self, optimization: Optimization) -> Optimization:
        most_rows = self.task.micro_batch_rows
        if not most_rows:
            return optimization
        # Where tokens bound the parts of a step, and not rows, half of the rows alone would change nothing.
        longest = max(len(row.token_ids) for row in self.train_rows)
        at_once = min(most_rows, max(1, MICRO_BATCH_TOKENS // (2 * longest)))
        return optimization.model_copy(update={"micro_batch_rows": at_once})

    def _write(self, checkpoints: CheckpointStore, step: int) -> None:
        checkpoints.restore_parameters(step, self.model)
        shutil.rmtree(self.adapter_directory, ignore_errors=True)
        size_bytes = sum(parameter.nbytes for _, parameter in self.model.named_parameters())
        self._room.refuse_without(size_bytes + DESCRIPTION_BYTES, "the job's adapter")
        self.adapter_directory.mkdir()
        try:
            self.write(self.adapter_directory)
        except Exception as error:
            if says_full_disk(error):
                raise self._room.lacking(size_bytes + DESCRIPTION_BYTES, "the job's adapter") from error
            raise

    def _keep_last_good(self, checkpoints: CheckpointStore, error: TrainingDiverged) -> TrainingDiverged:
        """Keep the adapter of the last good checkpoint (the best; the newest where none was evaluated) beside the
        job's work, which goes with the job's end; returns the refusal that says so.
        """
        task = self.task
        kept = checkpoints.latest(self.digest)
        if kept is None or not task.last_good_directory:
            return error
        step = kept.chosen_step
        self._write(checkpoints, step)
        shutil.rmtree(task.last_good_directory, ignore_errors=True)
        publish_directory(self.adapter_directory, Path(task.last_good_directory))
        found = f" (held-out loss {kept.best.loss:.4f})" if kept.best else ""
        return TrainingDiverged(
            f"{error.message}. The adapter of the checkpoint after step {step}{found} is kept: a TrainJob with "
            f"continue_from {task.job_name!r} goes on from it",
            metadata={**error.metadata, "last_good_step": str(step), "continue_from": task.job_name},
        )
