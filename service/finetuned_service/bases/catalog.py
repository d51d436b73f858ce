"""The bases of a data directory: list, get, delete. Torch-free; only directories are read.

DATA/bases/{base}                      shared by all tenants
DATA/tenants/{tenant}/bases/{base}     a tenant's own
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from finetuned_service.bases.manifest import MANIFEST_FILE, BaseManifest, read_manifest
from finetuned_service.errors import NotFound, ResourceInUse
from finetuned_service.names import BaseName


class BaseCatalog:
    """All bases under one data directory.

    There is no index: a base is there when its directory with a base.json is, and both come and go
    with one rename.
    """

    def __init__(self, data_directory: Path) -> None:
        self._data_directory = data_directory

    def path(self, name: BaseName) -> Path:
        """Where a base of that name lies or would lie."""
        return self._collection(name.tenant) / name.base

    def list(self, tenant: str | None = None) -> list[BaseManifest]:
        """The shared bases and, if given, the tenant's own, in order of name."""
        collections = [self._collection(None)] + ([self._collection(tenant)] if tenant else [])
        manifests = [manifest for each in collections for manifest in _manifests(each)]
        return sorted(manifests, key=lambda manifest: manifest.name)

    def get(self, name: BaseName) -> BaseManifest:
        """The base of that name.

        Raises:
            NotFound: if there is none.
        """
        directory = self.path(name)
        if not (directory / MANIFEST_FILE).is_file():
            raise NotFound.resource(str(name))
        return read_manifest(directory)

    def delete(self, name: BaseName, in_use: Sequence[str] = ()) -> None:
        """Remove a base; it is gone from the catalog at once, its files follow.

        A process that has its files mapped keeps them until it lets go.

        Args:
            name: which base.
            in_use: what still needs it, as the caller knows ("this server", names of jobs).

        Raises:
            NotFound: if there is none.
            ResourceInUse: if `in_use` is not empty.
        """
        self.get(name)
        if in_use:
            raise ResourceInUse(
                f"{name} is still used by {', '.join(in_use)}; end that use first",
                metadata={"resource": str(name), "used_by": ", ".join(in_use)},
            )
        doomed = self.path(name).with_name(f".{name.base}.deleted-{uuid.uuid4().hex[:8]}")
        try:
            self.path(name).rename(doomed)
        except FileNotFoundError as error:  # another delete was faster
            raise NotFound.resource(str(name)) from error
        shutil.rmtree(doomed)

    def _collection(self, tenant: str | None) -> Path:
        root = self._data_directory / "tenants" / tenant if tenant else self._data_directory
        return root / "bases"


def _manifests(collection: Path) -> Iterator[BaseManifest]:
    if collection.is_dir():
        for path in collection.iterdir():
            if not path.name.startswith("."):
                with suppress(NotFound):  # not a base, or deleted since its directory was seen
                    yield read_manifest(path)
