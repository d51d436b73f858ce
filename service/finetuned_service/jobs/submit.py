"""What happens to a TrainJob or Quantize call before it is a job: everything checked, gaps filled.

A refusal here leaves nothing behind; what passes is stored as QUEUED with its spec resolved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from finetuned_service.adapters.memory import served_bytes
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.family import TASKS
from finetuned_service.datasets.store import Dataset, DatasetStore
from finetuned_service.errors import AlreadyExists, InvalidField, NotFound
from finetuned_service.jobs.continuing import Start, continued, find_start, refuse_other_head
from finetuned_service.jobs.data_check import check_datasets, check_measurable, objective_for
from finetuned_service.jobs.estimate import NO_BUDGET, Budget, estimate_train, is_like
from finetuned_service.jobs.methods import (
    SETTINGS_OF,
    BaseFacts,
    adapter_bytes,
    adapter_elements,
    refuse_format,
    with_method,
)
from finetuned_service.jobs.rerun import defaulted_from_base, refuse_changed, spec_again
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import QuantizeSpec, Spec, TrainSpec
from finetuned_service.jobs.states import JobState, Priority
from finetuned_service.jobs.store import JobFilter, JobStore
from finetuned_service.jobs.values import Job
from finetuned_service.names import AdapterSelector, BaseName, ResourceName, check_id
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.tenancy.stored import directory_bytes
from finetuned_service.vocabulary import DataReport, Family, WeightFormat

_DESCRIPTION_BYTES = 64 * 1024
_EARLIER_JOBS = 50
"""Among so many of the newest one is sought that is like a new job."""

DataReporter = Callable[[TrainSpec, Path, Path | None], DataReport]
"""Reads the rows of a resolved spec (training file, evaluation file) as the job will."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Accepts jobs for one server."""

    store: JobStore
    datasets: DatasetStore
    bases: BaseCatalog
    resident_base: BaseName
    report: DataReporter
    max_rank: int
    """The largest that the server serves."""
    adapter_room_bytes: int
    """What one adapter may take in the server's memory."""
    registry: AdapterRegistry
    jobs_directory: Path
    job_budget: Budget = NO_BUDGET
    """What a job may hold where this server runs it; nothing is known where others do."""

    def rerun(
        self,
        tenant: str,
        name: ResourceName,
        base: str,
        display_name: str,
        request: RequestKey,
        *,
        validate_only: bool,
        priority: Priority = Priority.NORMAL,
        pause_after_estimate: bool = False,
    ) -> Job:
        """`train` with the spec of a job's record, on `base`; "" is this server's.

        Raises:
            NotFound: there is no such job, or its data or the base are gone.
            InvalidField: it was no TrainJob, or its settings do not fit the base.
            RerunRefused: its data has changed.
            QuotaExceeded: a limit of the tenant is reached.
        """
        made = None if validate_only else self.store.made_by(request)
        if made is not None:
            return made
        if name.tenant != tenant:
            raise NotFound.resource(str(name))
        record = self.store.get(tenant, name.id)
        spec = spec_again(record, base)
        return self.train(
            tenant,
            spec,
            display_name or record.display_name,
            request,
            validate_only=validate_only,
            record=record,
            priority=priority,
            pause_after_estimate=pause_after_estimate,
        )

    def train(
        self,
        tenant: str,
        spec: TrainSpec,
        display_name: str,
        request: RequestKey,
        *,
        validate_only: bool,
        record: Job | None = None,
        priority: Priority = Priority.NORMAL,
        pause_after_estimate: bool = False,
    ) -> Job:
        """Check a TrainJob and queue it, or only say what it would be; `record` is the job that it repeats.

        Raises:
            InvalidField, InvalidData: settings or rows cannot be trained on.
            NotFound: a dataset, base or version to continue from does not exist.
            AdapterIncompatible: that version is of another base.
            QuotaExceeded: a limit of the tenant is reached.
            ResourceExhausted: it needs more memory than a job may have.
        """
        if pause_after_estimate and validate_only:
            raise InvalidField.one(
                "pause_after_estimate",
                "is set beside validate_only, which starts nothing that could measure; leave one of them out",
            )
        made = None if validate_only else self.store.made_by(request)
        if made is not None:
            return made
        adapter = AdapterSelector.parse(spec.adapter, "spec.adapter")
        if adapter.tenant != tenant or adapter.version is not None or adapter.alias is not None:
            raise InvalidField.one(
                "spec.adapter",
                f"is {spec.adapter!r}; expected 'tenants/{tenant}/adapters/{{adapter}}' without a version",
            )
        if spec.promote_if is not None:
            check_id(spec.promote_if.alias, "spec.promote_if.alias")
        # Early, before all rows are read; `create` has the last word.
        self.store.refuse_full(self._job(tenant, spec, display_name))
        rows = self._dataset(tenant, spec.dataset, "spec.dataset")
        held_out = (
            self._dataset(tenant, spec.eval_dataset, "spec.eval_dataset") if spec.eval_dataset else None
        )
        if record is not None:
            refuse_changed(record, rows, held_out)
        objective = objective_for(spec.task, spec.objective, rows)
        check_datasets(spec.task, objective, rows, held_out)
        spec = spec.model_copy(update={"objective": objective})
        base, asked = self._trainable_base(tenant, spec), spec
        spec, start, notice = self._with_method(tenant, asked, base)
        resolve = partial(
            resolve_train,
            spec.model_copy(update={"base": str(base)}),
            base=BaseFacts.of_directory(self.bases.path(base)),
            max_rank=self.max_rank,
            kind=rows.row_kind,
            held_out=held_out.row_kind if held_out else None,
        )
        # How many rows there are to train on is known once they are read, which depends on nothing that it decides.
        unread = resolve(train_rows=1)
        self._refuse_larger_than_memory(unread, base)
        report = self.report(unread, rows.path, held_out.path if held_out else None)
        resolved = resolve(train_rows=max(1, report.train_rows))
        if start is not None:
            refuse_other_head(start, rows.row_kind, report)
        job = self._job(tenant, resolved, display_name, priority).model_copy(
            update={
                "data_report": report,
                "estimate": estimate_train(
                    resolved,
                    self.bases.path(base),
                    report,
                    self.job_budget,
                    self._earlier(tenant, resolved),
                ),
                "defaulted_from_base": () if start else defaulted_from_base(asked, spec.method),
                "rerun_of": record.name if record else "",
                "pause_after_estimate": pause_after_estimate,
            }
        )
        reserved_bytes = adapter_bytes(resolved, self.bases.path(base))
        if validate_only:
            return self._only_checked(job, reserved_bytes)
        return self.store.create(job, request, reserved_bytes=reserved_bytes, notice=notice)

    def quantize(
        self,
        tenant: str,
        spec: QuantizeSpec,
        display_name: str,
        request: RequestKey,
        *,
        validate_only: bool,
        priority: Priority = Priority.NORMAL,
    ) -> Job:
        """Check a Quantize run and queue it, or only say what it would be.

        Raises:
            InvalidField: settings that are not allowed.
            NotFound: a dataset or base does not exist.
            AlreadyExists: the output base's name is taken.
            QuotaExceeded: a limit of the tenant is reached.
        """
        made = None if validate_only else self.store.made_by(request)
        if made is not None:
            return made
        check_id(spec.output_base_id, "spec.output_base_id")
        source = self._base(tenant, spec.base)
        manifest = self.bases.get(source)
        if manifest.family is not Family.DECODER:
            raise InvalidField.one(
                "spec.base",
                f"is {source}, a {manifest.architecture}; Quantize measures by perplexity and takes decoders only",
            )
        if manifest.weight_format not in {WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16}:
            raise InvalidField.one(
                "spec.base",
                f"is {source}, {manifest.weight_format} already; quantize the base that it was made from",
            )
        if spec.quantize_embeddings and spec.weight_format is not WeightFormat.INT8:
            raise InvalidField.one("spec.quantize_embeddings", "is for WEIGHT_FORMAT_INT8 only; unset it")
        if spec.dataset:
            check_measurable(self._dataset(tenant, spec.dataset, "spec.dataset"))
        self._refuse_taken(BaseName(spec.output_base_id, tenant))
        job = self._job(tenant, spec.model_copy(update={"base": str(source)}), display_name, priority)
        # Quantized weights are smaller than their source; what is written about them is a little longer.
        reserved_bytes = directory_bytes(self.bases.path(source)) + _DESCRIPTION_BYTES
        if validate_only:
            return self._only_checked(job, reserved_bytes)
        return self.store.create(job, request, reserved_bytes=reserved_bytes)

    def _only_checked(self, job: Job, reserved_bytes: int) -> Job:
        """The job that `create` would queue now.

        Raises:
            QuotaExceeded: it would not.
        """
        self.store.refuse_full(job, reserved_bytes)
        return job

    def _refuse_taken(self, output: BaseName) -> None:
        try:
            self.bases.get(output)
        except NotFound:
            return
        raise AlreadyExists(
            f"{output} exists; bases never change: choose another output_base_id, or delete it first",
            metadata={"resource": str(output)},
        )

    def _job(self, tenant: str, spec: Spec, display_name: str, priority: Priority = Priority.NORMAL) -> Job:
        return Job(
            tenant=tenant,
            id="",
            display_name=display_name,
            state=JobState.QUEUED,
            create_time=datetime.now(UTC),
            priority=priority,
            spec=spec,
        )

    def _dataset(self, tenant: str, name: str, field: str) -> Dataset:
        parsed = ResourceName.parse(name, "datasets", field)
        if parsed.tenant != tenant:
            raise NotFound.resource(name)
        return self.datasets.get(parsed.tenant, parsed.id)

    def _base(self, tenant: str, name: str) -> BaseName:
        base = BaseName.parse(name, "spec.base") if name else self.resident_base
        if base.tenant not in {None, tenant}:
            raise NotFound.resource(name)
        self.bases.get(base)
        return base

    def _refuse_larger_than_memory(self, spec: TrainSpec, base: BaseName) -> None:
        """Refuse an adapter that this server, which would serve it, could not even hold alone."""
        needed_bytes = served_bytes(adapter_elements(spec, self.bases.path(base)), self.bases.get(base))
        if base == self.resident_base and needed_bytes > self.adapter_room_bytes:
            raise InvalidField.one(
                f"spec.{SETTINGS_OF[spec.method]}",
                f"makes an adapter of {needed_bytes / 1e6:,.1f} MB; this server has room for "
                f"{self.adapter_room_bytes / 1e6:,.1f} MB (adapter_host_bytes, adapter_device_bytes). Train fewer "
                "parameters, or ask the operator for more",
            )

    def _trainable_base(self, tenant: str, spec: TrainSpec) -> BaseName:
        base, task = self._base(tenant, spec.base), spec.task
        manifest = self.bases.get(base)
        if task not in TASKS[manifest.family]:
            allowed = ", ".join(TASKS[manifest.family])
            raise InvalidField.one(
                "spec.task", f"is {task}; {base} is a {manifest.architecture}, which is for {allowed}"
            )
        return base

    def _with_method(
        self, tenant: str, asked: TrainSpec, base: BaseName
    ) -> tuple[TrainSpec, Start | None, str]:
        """The spec with its method and with what the weights decide that it continues; those; and what is to be told."""
        start = None
        if asked.continue_from:
            start = find_start(tenant, asked.continue_from, self.registry, self.store, self.jobs_directory)
        manifest = self.bases.get(base)
        spec, notice = with_method(asked, manifest, start.method if start else None)
        refuse_format(spec, manifest)
        if start is not None:
            spec = continued(spec, start, manifest.digest, self.bases.path(base))
        return spec, start, notice

    def _earlier(self, tenant: str, spec: TrainSpec) -> Job | None:
        """The tenant's newest job that tells what one of this spec will take."""
        succeeded = JobFilter(states=(JobState.SUCCEEDED,), kind="train")
        newest = self.store.list(tenant, succeeded, PageRequest(size=_EARLIER_JOBS))
        return next((job for job in newest.items if is_like(job, spec)), None)
