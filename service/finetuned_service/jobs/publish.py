"""What a finished job leaves behind: a checked adapter version with its alias, or a new base.

The job process is not trusted with the store: its files are checked as an import would be, and the
version, the alias and the job's final state are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from finetuned_service.adapters.files import AdapterFacts, BaseGeometry, check_adapter, spell_out_config
from finetuned_service.adapters.manifest import AdapterManifest, Lineage
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import read_manifest, write_manifest
from finetuned_service.jobs.task import QuantizeFinished, TrainFinished
from finetuned_service.jobs.values import (
    Job,
    PromoteIf,
    QuantizeResult,
    QuantizeSpec,
    TrainResult,
    TrainSpec,
)
from finetuned_service.names import AdapterSelector, BaseName
from finetuned_service.storage.files import publish_directory
from finetuned_service.vocabulary import Metric


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes the results of jobs."""

    registry: AdapterRegistry
    bases: BaseCatalog
    max_rank: int

    def train(
        self, job: Job, spec: TrainSpec, finished: TrainFinished, output: Path, base_directory: Path
    ) -> Callable[[Connection, Job], Job]:
        """Check the files now; the returned step records everything in the caller's transaction.

        Raises:
            InvalidAdapterFiles: if the job process wrote what an import would refuse.
        """
        geometry = BaseGeometry.of_directory(base_directory)
        facts = check_adapter(output, geometry, self.max_rank)
        spell_out_config(output)
        selector = AdapterSelector.parse(spec.adapter, "adapter")

        def record(connection: Connection, current: Job) -> Job:
            version = self.registry.add_version(
                connection,
                job.tenant,
                selector.adapter,
                output,
                lambda name: _manifest(name, current, spec, finished, facts, geometry),
            )
            promoted, why = _decide(spec.promote_if, finished)
            if promoted and spec.promote_if is not None:
                self.registry.promote(
                    connection, job.tenant, selector.adapter, spec.promote_if.alias, version.version
                )
            result = TrainResult(
                version=version.name,
                digest=facts.digest,
                promoted=promoted,
                promotion=why,
                stopped_early=finished.stopped_early,
            )
            return current.model_copy(update={"result": result})

        return record

    def quantize(
        self, job: Job, spec: QuantizeSpec, finished: QuantizeFinished, output: Path
    ) -> Callable[[Connection, Job], Job]:
        """The new base belongs to the job's tenant; one that the gate refused is not kept."""
        name = BaseName(spec.output_base_id, job.tenant)
        if not finished.accepted:
            result = QuantizeResult(base="", digest="", report=finished.report)
            return lambda _connection, current: current.model_copy(update={"result": result})
        manifest = read_manifest(output).model_copy(update={"name": str(name)})
        write_manifest(output, manifest)

        def record(_connection: Connection, current: Job) -> Job:
            final = self.bases.path(name)
            final.parent.mkdir(parents=True, exist_ok=True)
            publish_directory(output, final)
            result = QuantizeResult(base=str(name), digest=manifest.digest, report=finished.report)
            return current.model_copy(update={"result": result})

        return record


def _manifest(
    name: str,
    job: Job,
    spec: TrainSpec,
    finished: TrainFinished,
    facts: AdapterFacts,
    geometry: BaseGeometry,
) -> AdapterManifest:
    return AdapterManifest(
        name=name,
        digest=facts.digest,
        base_digest=geometry.digest,
        base_root_digest=geometry.root_digest,
        method=facts.method,
        task=facts.task,
        metrics=finished.metrics,
        lineage=Lineage(
            job=job.name,
            dataset=spec.dataset,
            dataset_digest=job.environment.dataset_digest if job.environment else "",
        ),
        parameters=facts.parameters,
        modules=facts.modules,
        rank=facts.rank,
        size_bytes=facts.size_bytes,
        create_time=datetime.now(UTC),
    )


def _decide(wanted: PromoteIf | None, finished: TrainFinished) -> tuple[bool, str]:
    """Whether `promote_if` moves the alias, and the sentence that says why."""
    if wanted is None:
        return False, ""
    new = _metric(finished.metrics, wanted.metric)
    if new is None:
        return False, f"not moved: {wanted.metric} was not measured"
    sign = 1 if new.higher_is_better else -1
    if wanted.minimum is not None and sign * new.value < sign * wanted.minimum:
        bound = "below" if sign > 0 else "above"
        return False, f"not moved: {wanted.metric} {new.value:.4g} is {bound} {wanted.minimum:.4g}"
    old = _metric(finished.incumbent_metrics, wanted.metric)
    if wanted.better_than_current and old is not None and sign * new.value <= sign * old.value:
        return (
            False,
            f"not moved: {wanted.metric} {new.value:.4g} does not beat {old.value:.4g} of the current version",
        )
    beaten = f", the version before has {old.value:.4g}" if old is not None else ""
    return True, f"{wanted.alias} moved: {wanted.metric} {new.value:.4g}{beaten}"


def _metric(metrics: tuple[Metric, ...], name: str) -> Metric | None:
    return next((metric for metric in metrics if metric.name == name), None)
