"""Adapters in and out: files in PEFT's layout.

An import is checked as a whole (names, shapes, values, base) before anything is stored.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from finetuned_service.adapters.files import BaseGeometry, check_adapter, spell_out_config
from finetuned_service.adapters.label_order import has_sorted_labels, sort_labels
from finetuned_service.adapters.manifest import AdapterManifest, Lineage
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.errors import AdapterIncompatible, InvalidAdapterFiles, InvalidUpload, NotFound
from finetuned_service.names import AdapterSelector
from finetuned_service.storage.chunks import FileChunk, chunks_of
from finetuned_service.storage.files import refusing_full_disk, sweep_leftovers
from finetuned_service.storage.idempotency import RequestKey

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"
ACCEPTED_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)


@dataclass(frozen=True, slots=True)
class StagedFiles:
    """Files of an import on their way in; gone with the block that made them."""

    directory: Path
    max_bytes: int

    def append(self, file_name: str, offset: int, data: bytes) -> None:
        """Add bytes to one of the accepted files.

        Raises:
            InvalidUpload: another file name (a pickle is never read), a wrong offset, too many bytes.
            ResourceExhausted: the disk is full.
        """
        if file_name not in ACCEPTED_FILES:
            raise InvalidUpload(
                f"file {file_name!r} is not part of an adapter; allowed: {', '.join(ACCEPTED_FILES)} "
                "(weights come as safetensors; a pickle is never read)"
            )
        path = self.directory / file_name
        have = path.stat().st_size if path.exists() else 0
        if offset != have:
            raise InvalidUpload(f"chunk of {file_name} has offset {offset}, expected {have}")
        if have + len(data) > self.max_bytes:
            raise InvalidUpload(f"{file_name} is larger than {self.max_bytes} bytes, the most allowed")
        with refusing_full_disk(), path.open("ab") as file:
            file.write(data)


@dataclass(frozen=True, slots=True)
class AdapterImports:
    """Imports adapters for one base."""

    registry: AdapterRegistry
    geometry: BaseGeometry
    staging_directory: Path
    """On the file system of the registry's directory."""
    max_rank: int
    max_bytes: int

    @contextmanager
    def staging(self) -> Generator[StagedFiles]:
        """A place for the files of one import."""
        self.staging_directory.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(self.staging_directory, "*")
        directory = Path(tempfile.mkdtemp(dir=self.staging_directory))
        try:
            yield StagedFiles(directory, self.max_bytes)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def check_base(self, expected_digest: str | None) -> None:
        """Refuse an adapter of another base before its files come.

        Raises:
            AdapterIncompatible: naming both digests.
        """
        if expected_digest is not None and expected_digest != self.geometry.digest:
            raise AdapterIncompatible(
                f"the adapter was made for the base {expected_digest}; this server holds "
                f"{self.geometry.digest}. Import it where its base is served",
                metadata={
                    "adapter_base_digest": expected_digest,
                    "server_base_digest": self.geometry.digest,
                },
            )

    def finish(
        self,
        staged: StagedFiles,
        selector: AdapterSelector,
        expected_digest: str | None,
        source: str,
        request: RequestKey,
    ) -> AdapterVersion:
        """Check the files and store them as the adapter's next version.

        Raises:
            AdapterIncompatible, InvalidAdapterFiles: nothing is stored.
            QuotaExceeded: a limit of the tenant is reached.
        """
        self.check_base(expected_digest)
        for needed in (CONFIG_FILE, WEIGHTS_FILE):
            if not (staged.directory / needed).exists():
                raise InvalidAdapterFiles(
                    f"{needed} is missing; an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        # The manifest of an export describes another server's version; what holds here is measured here.
        (staged.directory / MANIFEST_FILE).unlink(missing_ok=True)
        facts = check_adapter(staged.directory, self.geometry, self.max_rank)
        if not has_sorted_labels(facts):
            sort_labels(staged.directory, facts)
            facts = check_adapter(staged.directory, self.geometry, self.max_rank)
        spell_out_config(staged.directory)

        def manifest(name: str) -> AdapterManifest:
            return AdapterManifest(
                name=name,
                digest=facts.digest,
                base_digest=self.geometry.digest,
                base_root_digest=self.geometry.root_digest,
                base_verified=expected_digest is not None,
                method=facts.method,
                task=facts.task,
                lineage=Lineage(source=source or "import"),
                parameters=facts.parameters,
                modules=facts.modules,
                rank=facts.rank,
                head=facts.head,
                size_bytes=facts.size_bytes,
                create_time=datetime.now(UTC),
            )

        # The request id stands for the files too: other ones under the same id are refused.
        key = dataclasses.replace(request, fingerprint=f"{request.fingerprint[:32]}{facts.digest[-32:]}")
        return self.registry.import_version(
            selector.tenant,
            selector.adapter,
            staged.directory,
            manifest,
            facts.size_bytes,
            key,
            damaged=self.registry.is_damaged(facts.digest),
        )


def export_chunks(version: AdapterVersion) -> Iterator[FileChunk]:
    """The files of a version, PEFT's two and our manifest, piece by piece.

    All are open before the first piece comes: a deletion meanwhile does not cut the export short.

    Raises:
        NotFound: the version has just been deleted.
    """
    manifest = io.BytesIO(version.manifest.model_dump_json(indent=1).encode())
    with ExitStack() as opened:
        files: list[tuple[str, BinaryIO]] = []
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                files.append((name, opened.enter_context((version.directory / name).open("rb"))))
            except FileNotFoundError as error:
                raise NotFound.resource(version.name) from error
        for name, file in [*files, (MANIFEST_FILE, manifest)]:
            yield from chunks_of(name, file)
