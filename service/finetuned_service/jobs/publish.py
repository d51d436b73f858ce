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
from finetuned_service.bases.manifest import MANIFEST_FILE, BaseManifest, read_manifest
from finetuned_service.errors import AlreadyExists, NotFound
from finetuned_service.jobs.promotion import decide
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import QuantizeFinished, QuantizeTask, TrainFinished, TrainTask
from finetuned_service.jobs.values import Job, QuantizeResult, TrainResult
from finetuned_service.names import AdapterSelector, BaseName
from finetuned_service.storage.files import publish_directory, sync_files, write_atomically


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes the results of jobs."""

    registry: AdapterRegistry
    bases: BaseCatalog
    max_rank: int

    def train(self, job: Job, task: TrainTask, finished: TrainFinished) -> Callable[[Connection, Job], Job]:
        """Check the files now; the returned step records everything in the caller's transaction.

        Raises:
            InvalidAdapterFiles: if the job process wrote what an import would refuse.
        """
        output = Path(task.output_directory)
        geometry = BaseGeometry.of_directory(Path(task.base_directory))
        facts = check_adapter(output, geometry, self.max_rank)
        spell_out_config(output)
        # Here and not inside the transaction, which others wait for.
        sync_files(output)
        damaged = self.registry.is_damaged(facts.digest)
        adapter, wanted = AdapterSelector.parse(task.spec.adapter, "adapter").adapter, task.spec.promote_if

        def record(connection: Connection, current: Job) -> Job:
            # Read before the version is added: the first one becomes `default` by itself.
            incumbent = (
                self.registry.current_in(connection, job.tenant, adapter, wanted.alias) if wanted else None
            )
            version = self.registry.add_version(
                connection,
                job.tenant,
                adapter,
                output,
                lambda name: _manifest(name, current, task.spec, finished, facts, geometry),
                damaged=damaged,
            )
            promotion = decide(wanted, task, finished, incumbent)
            if wanted and promotion.moves:
                self.registry.promote(connection, job.tenant, adapter, wanted.alias, version.version)
            result = TrainResult(
                version=version.name,
                digest=facts.digest,
                promoted=promotion.moves,
                promotion=promotion.why,
                stopped_early=finished.stopped_early,
            )
            return current.model_copy(update={"result": result})

        return record

    def quantize(
        self, job: Job, task: QuantizeTask, finished: QuantizeFinished
    ) -> Callable[[Connection, Job], Job]:
        """The new base belongs to the job's tenant; one that the gate refused is not kept.

        Raises:
            AlreadyExists: by the returned step too; another base has taken the name meanwhile.
        """
        output, name = Path(task.output_directory), BaseName(task.spec.output_base_id, job.tenant)
        if not finished.accepted:
            result = QuantizeResult(base="", digest="", report=finished.report)
            return lambda _connection, current: current.model_copy(update={"result": result})
        manifest = self._named(output, name)
        result = QuantizeResult(base=str(name), digest=manifest.digest, report=finished.report)

        def record(_connection: Connection, current: Job) -> Job:
            self._refuse_other(name, manifest.digest)
            final = self.bases.path(name)
            final.parent.mkdir(parents=True, exist_ok=True)
            publish_directory(output, final)
            return current.model_copy(update={"result": result})

        return record

    def _named(self, output: Path, name: BaseName) -> BaseManifest:
        """The manifest of the new base, under its name; found in its place if a try before this one,
        whose record was lost, has moved it there.
        """
        if not output.exists():
            return self.bases.get(name)
        manifest = read_manifest(output)
        if manifest.name != str(name):
            manifest = manifest.model_copy(update={"name": str(name)})
            # Replaced, not written to: the job process has made its files read-only.
            write_atomically(output / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
        sync_files(output)
        return manifest

    def _refuse_other(self, name: BaseName, digest: str) -> None:
        try:
            found = self.bases.get(name)
        except NotFound:
            return
        if found.digest != digest:
            raise AlreadyExists(
                f"{name} was made by somebody else while the job ran; bases never change: choose another "
                "output_base_id",
                metadata={"resource": str(name)},
            )


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
        method=spec.method,
        task=facts.task,
        metrics=finished.metrics,
        lineage=Lineage(
            job=job.name,
            dataset=spec.dataset,
            dataset_digest=job.environment.dataset_digest if job.environment else "",
            parent_version=spec.continue_from,
        ),
        parameters=facts.parameters,
        modules=facts.modules,
        rank=facts.rank,
        head=facts.head,
        size_bytes=facts.size_bytes,
        create_time=datetime.now(UTC),
    )
