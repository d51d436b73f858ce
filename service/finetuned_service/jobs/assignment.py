"""What a job process is given: paths instead of names, limits, and what `promote_if` compares with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.datasets.store import Dataset, DatasetStore
from finetuned_service.jobs.task import QuantizeTask, TaskLimits, TrainTask
from finetuned_service.jobs.values import Job, QuantizeSpec, TrainSpec
from finetuned_service.names import AdapterSelector, BaseName, ResourceName


@dataclass(frozen=True, slots=True)
class Assignments:
    """Makes tasks from jobs."""

    bases: BaseCatalog
    datasets: DatasetStore
    registry: AdapterRegistry
    limits: TaskLimits

    def base_directory(self, base: str) -> Path:
        """Where a base lies.

        Raises:
            NotFound: if it has been deleted.
        """
        name = BaseName.parse(base, "base")
        self.bases.get(name)
        return self.bases.path(name)

    def task_for(self, job: Job, directory: Path) -> TrainTask | QuantizeTask:
        """The task of one attempt; `directory` is the job's own.

        Raises:
            NotFound: something that the job needs has been deleted.
        """
        work = directory / "work"
        work.mkdir(parents=True, exist_ok=True)
        if isinstance(job.spec, TrainSpec):
            return self._train(job, job.spec, directory)
        return self._quantize(job, job.spec, directory)

    def _train(self, job: Job, spec: TrainSpec, directory: Path) -> TrainTask:
        rows = self._dataset(spec.dataset)
        held_out = self._dataset(spec.eval_dataset) if spec.eval_dataset else None
        return TrainTask(
            job_name=job.name,
            attempt=job.attempt,
            spec=spec,
            base_directory=str(self.base_directory(spec.base)),
            base_digest=self.bases.get(BaseName.parse(spec.base)).digest,
            train_path=str(rows.path),
            train_digest=rows.digest,
            eval_path=str(held_out.path) if held_out else "",
            eval_digest=held_out.digest if held_out else "",
            incumbent_directory=self._incumbent(job, spec),
            work_directory=str(directory / "work"),
            output_directory=str(directory / "output"),
            limits=self.limits,
        )

    def _quantize(self, job: Job, spec: QuantizeSpec, directory: Path) -> QuantizeTask:
        return QuantizeTask(
            job_name=job.name,
            attempt=job.attempt,
            spec=spec,
            base_directory=str(self.base_directory(spec.base)),
            base_digest=self.bases.get(BaseName.parse(spec.base)).digest,
            text_path=str(self._dataset(spec.dataset).path) if spec.dataset else "",
            work_directory=str(directory / "work"),
            output_directory=str(directory / "output"),
            limits=self.limits,
        )

    def _incumbent(self, job: Job, spec: TrainSpec) -> str:
        if spec.promote_if is None:
            return ""
        adapter = AdapterSelector.parse(spec.adapter, "adapter").adapter
        current = self.registry.current(job.tenant, adapter, spec.promote_if.alias)
        return str(current.directory) if current else ""

    def _dataset(self, name: str) -> Dataset:
        parsed = ResourceName.parse(name, "datasets", "dataset")
        return self.datasets.get(parsed.tenant, parsed.id)
