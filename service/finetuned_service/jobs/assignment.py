"""What a job process is given: paths instead of names, limits, and what `promote_if` compares with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.lender import Lender
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.datasets.store import Dataset, DatasetStore
from finetuned_service.jobs.continuing import directory_of
from finetuned_service.jobs.events import EstimateBasis
from finetuned_service.jobs.specs import QuantizeSpec, TrainSpec
from finetuned_service.jobs.task import LAST_GOOD, TASK_FILE, TENSORBOARD, QuantizeTask, TaskLimits, TrainTask
from finetuned_service.jobs.values import Job
from finetuned_service.names import AdapterSelector, BaseName, ResourceName


@dataclass(frozen=True, slots=True)
class ResidentBase:
    """What a server that runs its jobs itself holds on a GPU."""

    digest: str = ""
    tensors: tuple[SharedTensor, ...] = ()
    lender: Lender | None = None
    """The process that holds them."""
    returning: bool = False
    """That process has ended, and another one is about to hold them: jobs wait for it, as they would else need the
    memory that it needs."""


@dataclass(frozen=True, slots=True)
class Assignments:
    """Makes tasks from jobs."""

    bases: BaseCatalog
    datasets: DatasetStore
    registry: AdapterRegistry
    limits: TaskLimits
    device: str = "cpu"
    resident: Callable[[], ResidentBase] = ResidentBase
    """Asked for each attempt: an engine that was started again holds its base elsewhere."""
    cache_directory: str = ""
    probe_steps: int = 0

    def task_for(self, job: Job, directory: Path) -> TrainTask | QuantizeTask:
        """The task of one attempt; `directory` is the job's own.

        The work of earlier attempts is kept, what they may have left as output is not.

        Raises:
            NotFound: something that the job needs has been deleted.
        """
        (directory / "work").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(directory / "output", ignore_errors=True)
        if isinstance(job.spec, TrainSpec):
            return self._train(job, job.spec, directory)
        return self._quantize(job, job.spec, directory)

    def _train(self, job: Job, spec: TrainSpec, directory: Path) -> TrainTask:
        rows = self._dataset(spec.dataset)
        held_out = self._dataset(spec.eval_dataset) if spec.eval_dataset else None
        base = BaseName.parse(spec.base, "base")
        base_digest = self.bases.get(base).digest
        # With fewer rows at once it is another job to measure.
        measured = (
            bool(job.estimate) and job.estimate.basis is EstimateBasis.MEASURED and not job.micro_batch_rows
        )
        resident = self.resident()
        lent = resident.digest == base_digest
        start = directory_of(job, spec, self.registry, directory.parent)
        return TrainTask(
            job_name=job.name,
            attempt=job.attempt,
            spec=spec,
            micro_batch_rows=job.micro_batch_rows,
            probe_steps=0 if measured else self.probe_steps,
            pause_after_estimate=job.pause_after_estimate,
            base_directory=str(self.bases.path(base)),
            base_digest=base_digest,
            train_path=str(rows.path),
            train_digest=rows.digest,
            eval_path=str(held_out.path) if held_out else "",
            eval_digest=held_out.digest if held_out else "",
            start_directory=str(start or ""),
            incumbent_directory=self._incumbent(job, spec, base_digest, directory / TASK_FILE),
            device=self.device,
            resident=resident.tensors if lent else (),
            lender=resident.lender if lent else None,
            cache_directory=self.cache_directory,
            work_directory=str(directory / "work"),
            output_directory=str(directory / "output"),
            last_good_directory=str(directory / LAST_GOOD),
            log_directory=str(directory / TENSORBOARD),
            limits=self.limits,
        )

    def _quantize(self, job: Job, spec: QuantizeSpec, directory: Path) -> QuantizeTask:
        base = BaseName.parse(spec.base, "base")
        return QuantizeTask(
            job_name=job.name,
            attempt=job.attempt,
            spec=spec,
            base_directory=str(self.bases.path(base)),
            base_digest=self.bases.get(base).digest,
            text_path=str(self._dataset(spec.dataset).path) if spec.dataset else "",
            work_directory=str(directory / "work"),
            output_directory=str(directory / "output"),
            limits=self.limits,
        )

    def _incumbent(self, job: Job, spec: TrainSpec, base_digest: str, last_task: Path) -> str:
        """Where the version lies that `promote_if` compares with; "" if there is none for this base.

        All attempts of a job compare with the version of the first one, whose figures they may have kept.
        """
        if spec.promote_if is None:
            return ""
        given = _incumbent_given(last_task)
        if given is not None:
            return given if Path(given).is_dir() else ""
        adapter = AdapterSelector.parse(spec.adapter, "adapter").adapter
        current = self.registry.current(job.tenant, adapter, spec.promote_if.alias)
        fits = current is not None and current.manifest.base_digest == base_digest
        return str(current.directory) if current is not None and fits else ""

    def _dataset(self, name: str) -> Dataset:
        parsed = ResourceName.parse(name, "datasets", "dataset")
        return self.datasets.get(parsed.tenant, parsed.id)


def _incumbent_given(last_task: Path) -> str | None:
    """The incumbent of the attempt before, "" for none; None if there was no attempt of this build."""
    try:
        return TrainTask.model_validate_json(last_task.read_bytes()).incumbent_directory
    except (FileNotFoundError, ValidationError):
        return None
