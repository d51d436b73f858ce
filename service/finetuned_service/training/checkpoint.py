"""Everything that a killed process needs to go on exactly where it was, in directories that appear whole.

    checkpoints/step-00000040/state.json         how far the run is, and what it found
    checkpoints/step-00000040/tensors.safetensors  parameters, moments of AdamW, states of torch's generators

The order of rows needs no state: it follows from the seed and the step. No pickle is ever read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetuned_service.bases.lender import BORROWED
from finetuned_service.errors import ResourceExhausted
from finetuned_service.jobs.events import Environment, Notice
from finetuned_service.jobs.process import ReportFunction
from finetuned_service.jobs.room import Room
from finetuned_service.storage.files import publish_directory, says_full_disk
from finetuned_service.tenancy.stored import directory_bytes
from finetuned_service.training.generators import generator_states, restore_generators
from finetuned_service.training.trainable import Parameters
from finetuned_service.vocabulary import Value

MEANING_OF_CHECKPOINTS = "numbers in their unit"
"""Another one for each change of what the parameters, losses or states in checkpoints mean: a job begins anew instead of going
on from one that an older build has left.
"""
LEAST_CHECKPOINTS = 3
"""What must have room: the newest, the best, and the one that is being written."""

DESCRIPTION_BYTES = 64 * 1024
"""Generator, header and state."""
_PARAMETER = "parameter."
_MOMENT = "optimizer."


class Evaluation(Value):
    """The held-out loss after a step; see `loop.HeldOut`."""

    step: int
    loss: float


def _best_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    return min(evaluations, key=lambda evaluation: evaluation.loss)


class RunState(Value):
    """How far a run is. A new one is made at every step."""

    task_digest: str
    """Of the resolved spec and the data; a checkpoint of another task is never resumed."""
    environment: Environment
    """In which the last step ran; in another one the run goes on, but not to the last digit."""
    step: int = 0
    """Finished optimizer steps."""
    tokens: int = 0
    """Trained on so far, repetitions counted."""
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def best(self) -> Evaluation | None:
        """The lowest held-out loss; the earliest of equals."""
        return _best_of(self.evaluations) if self.evaluations else None

    @property
    def chosen_step(self) -> int:
        """After which the weights are the run's result: the best one's, and the last where nothing was measured."""
        return self.best.step if self.best else self.step

    @property
    def evaluations_since_best(self) -> int:
        return 0 if self.best is None else len(self.evaluations) - 1 - self.evaluations.index(self.best)


class CheckpointStore:
    """The checkpoints of one run in a directory that only this run writes."""

    def __init__(
        self,
        directory: Path,
        *,
        kept: int = 2,
        budget_bytes: int = 2**63,
        report: ReportFunction | None = None,
        room: Room | None = None,
    ) -> None:
        """The newest `kept` checkpoints stay, and the best; fewer where all of them, with the one that is being
        written, would take more than `budget_bytes` or what the disk has room for, which `report` then tells once.
        """
        self._directory, self._kept, self._budget_bytes, self._report = directory, kept, budget_bytes, report
        self._room = room or Room(directory, 0)
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".*"):
            shutil.rmtree(leftover)

    def save(self, state: RunState, model: Parameters, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `state.step`, unless it was; checkpoints that are no longer needed go, for want of room
        before, others after.

        Raises:
            LenderEnded: nobody knows what the step was computed with; nothing is kept of it.
            NoRoom: the disk has none for it; nothing is written.
        """
        if self._path(state.step).exists():
            return
        self.refuse_without_room(state, model)
        temporary = self._directory / f".step-{state.step:08}"
        temporary.mkdir()
        try:
            save_file(dict(_tensors(model, optimizer)), temporary / "tensors.safetensors")
            (temporary / "state.json").write_text(state.model_dump_json())
            BORROWED.refuse_lost()
            publish_directory(temporary, self._path(state.step))
        except BaseException as error:
            # On a full disk others need the room at once.
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, Exception) and says_full_disk(error):
                raise self._room.lacking(_size_bytes(model), "a checkpoint") from error
            raise
        self._drop_old(state)

    def latest(self, task_digest: str) -> RunState | None:
        """The newest state of this task, if there is one; what another one left behind is dropped."""
        newest = max(self._directory.glob("step-*"), default=None)
        if newest is None:
            return None
        state = RunState.model_validate_json((newest / "state.json").read_bytes())
        if state.task_digest == task_digest:
            return state
        for path in self._directory.glob("step-*"):
            self._drop(path)
        return None

    def restore(self, step: int, model: Parameters, optimizer: torch.optim.Optimizer) -> None:
        """Put parameters, moments and torch's generators back as they were after `step`."""
        tensors = load_file(self._path(step) / "tensors.safetensors")
        self._put(tensors, model)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_MOMENT):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        groups: Any = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        restore_generators(model, tensors)

    def restore_parameters(self, step: int, model: Parameters) -> None:
        """Only the parameters, for evaluating and storing a result."""
        self._put(load_file(self._path(step) / "tensors.safetensors"), model)

    @staticmethod
    def _put(tensors: dict[str, Tensor], model: Parameters) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[_PARAMETER + name])

    def _drop_old(self, state: RunState) -> None:
        paths = sorted(self._directory.glob("step-*"))
        best = self._path(state.best.step) if state.best else None
        for path in paths[: -self._kept]:
            if path != best:
                self._drop(path)

    def refuse_over_budget(self, model: Parameters) -> None:
        """Say at the start that the least number of checkpoints has no room.

        Raises:
            ResourceExhausted: naming sizes and remedies.
        """
        size_bytes = _size_bytes(model)
        if LEAST_CHECKPOINTS * size_bytes > self._budget_bytes:
            raise ResourceExhausted(
                f"a checkpoint of this job takes {size_bytes / 1e6:,.1f} MB, and {LEAST_CHECKPOINTS} must have room "
                f"(the last, the best, and the one being written); allowed: {self._budget_bytes / 1e6:,.1f} MB for "
                "each job (job_checkpoint_bytes). Train fewer parameters, or ask the operator for more",
                metadata={
                    "checkpoint_bytes": str(size_bytes),
                    "allowed_bytes": str(self._budget_bytes),
                },
            )

    def refuse_without_room(self, state: RunState, model: Parameters, copies: int = 1) -> None:
        """Drop what is not needed where it takes the room of the next checkpoint; `copies` of one are about to be
        written.

        Raises:
            NoRoom: the disk has no room all the same.
        """
        size_bytes = _size_bytes(model)
        self._make_room(state, size_bytes)
        what = "a checkpoint" if copies == 1 else "measuring the first steps"
        self._room.refuse_without(copies * size_bytes, what)

    def _make_room(self, state: RunState, size_bytes: int) -> None:
        """Drop the oldest, never the newest or the best, until one more has room.

        The best is that of those that are there, also where the next one is better: until it is published the run may
        have to begin again without it, and its loss may then come out otherwise. Where there is no room for all three the
        job waits for it.
        """
        paths = sorted(path for path in self._directory.glob("step-*") if path != self._path(state.step))
        there = [each for each in state.evaluations if self._path(each.step).exists()]
        best = self._path(_best_of(there).step) if there else None
        for path in [path for path in paths[:-1] if path != best]:
            held, spare_bytes = sum(directory_bytes(each) for each in paths), self._room.spare_bytes()
            if held + size_bytes > self._budget_bytes:
                why = f"all may take {self._budget_bytes / 1e6:,.1f} MB (job_checkpoint_bytes)"
            elif size_bytes > spare_bytes:
                why = f"the server's disk has {spare_bytes / 1e6:,.1f} MB to spare (min_free_disk_bytes)"
            else:
                return
            self._drop(path)
            paths.remove(path)
            if self._report is not None:
                text = (
                    f"{len(paths) + 1} checkpoints are kept, fewer than kept_checkpoints ({self._kept}) and the best: "
                    f"each takes {size_bytes / 1e6:,.1f} MB, {why}"
                )
                self._report(Notice(severity="WARNING", text=text))
                self._report = None

    def _drop(self, path: Path) -> None:
        # Out of sight first: a process killed half-way leaves no half of a checkpoint to be found.
        hidden = path.rename(path.with_name(f".{path.name}"))
        shutil.rmtree(hidden)

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:08}"


def _size_bytes(model: Parameters) -> int:
    """Of a checkpoint: each parameter with the two moments of AdamW, all in the parameter's dtype."""
    return 3 * sum(parameter.nbytes for _, parameter in model.named_parameters()) + DESCRIPTION_BYTES


def _tensors(model: Parameters, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield _PARAMETER + name, parameter.detach()
    states: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    for index, moments in states.items():
        for key, tensor in moments.items():
            yield f"{_MOMENT}{index}.{key}", tensor
    yield from generator_states(model).items()
