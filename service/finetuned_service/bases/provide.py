"""The base that a server was asked to hold: found, or converted once, and checked.

Conversion runs in a process of its own: it needs torch, and its memory is gone when it ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import BaseManifest, compute_digest
from finetuned_service.bases.packaged import PACKAGED_BASES
from finetuned_service.errors import NotFound, StartRefused
from finetuned_service.names import BaseName
from finetuned_service.telemetry.logs import logger

_LOG = logger("bases")


def provide_base(name: str, data_directory: Path, *, verify: bool) -> tuple[BaseManifest, Path]:
    """The manifest and directory of the base called `name`, converted first if it is a packaged one.

    Args:
        name: the id of a shared base, or a full name such as `tenants/acme/bases/small`.
        data_directory: the server's.
        verify: compare the digest of the file with the manifest.

    Raises:
        StartRefused: there is no such base, it cannot be converted, or its digest is wrong.
    """
    catalog = BaseCatalog(data_directory)
    base_name = BaseName.parse(name if "/" in name else f"bases/{name}", "base")
    directory = catalog.path(base_name)
    try:
        manifest = catalog.get(base_name)
    except NotFound:
        if base_name.tenant is not None or base_name.base not in PACKAGED_BASES:
            known = ", ".join([m.name for m in catalog.list()] + sorted(PACKAGED_BASES))
            raise StartRefused(
                f"base {name!r} is not in {data_directory}; available: {known}. Add one with "
                "'finetuned base add'"
            ) from None
        _convert(base_name.base, data_directory)
        manifest = catalog.get(base_name)
    if verify:
        found = compute_digest(directory)
        if found != manifest.digest:
            raise StartRefused(
                f"{base_name} has the digest {found}, its manifest says {manifest.digest}: the files were "
                "changed or damaged. Delete the base's directory and add it again"
            )
    return manifest, directory


def _convert(base_id: str, data_directory: Path) -> None:
    _LOG.info("base_conversion_started", base=base_id, note="once; about half a minute")
    command = [
        sys.executable,
        "-m",
        "finetuned_service",
        "base",
        "add",
        base_id,
        "--data-dir",
        str(data_directory),
    ]
    done = subprocess.run(command, check=False, stdout=sys.stderr)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise StartRefused(f"base {base_id!r} could not be converted; the lines above say why")
