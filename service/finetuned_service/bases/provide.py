"""The base that a server was asked to hold: found, or put in place once, and checked.

Fetching and conversion run in a process of their own (`finetuned base add`): they need torch, and their
memory is gone when they end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import BaseManifest, compute_digest
from finetuned_service.bases.packaged import PACKAGED_BASES
from finetuned_service.bases.source import default_name, parse_source, refuse_other
from finetuned_service.errors import FinetunedError, NotFound, StartRefused
from finetuned_service.names import BaseName
from finetuned_service.telemetry.logs import logger

_LOG = logger("bases")


def provide_base(
    name: str, data_directory: Path, *, source: str = "", digest: str = "", verify: bool = True
) -> tuple[BaseManifest, Path]:
    """The manifest and directory of the base called `name`, made first if it is not there.

    Args:
        name: the id of a shared base, a full name such as `tenants/acme/bases/small`, or a directory (beginning
            with /, ./ or ../) that is brought in under its own name.
        data_directory: the server's.
        source: where it comes from, see `bases/source.py`; "" knows the packaged bases by their names.
        digest: what the base's digest must be; "" takes what is there.
        verify: compare the digest of the file with the manifest.

    Raises:
        StartRefused: there is no such base, it cannot be made, or it is another one than was asked for;
            what lies in the data directory is as it was.
    """
    try:
        if not source and name.startswith(("/", "./", "../")):
            source, name = name, default_name(parse_source(name))
        base_name = BaseName.parse_short(name, "base")
        wanted = parse_source(source) if source else None
    except FinetunedError as error:
        raise StartRefused(f"base_source or base: {error.message}") from error
    catalog = BaseCatalog(data_directory)
    directory = catalog.path(base_name)
    try:
        manifest = catalog.get(base_name)
    except NotFound:
        if not source:
            source = _packaged(base_name, catalog, data_directory)
        _add(source, base_name, digest, data_directory)
        manifest = catalog.get(base_name)
    try:
        refuse_other(manifest, wanted, digest)
    except FinetunedError as error:
        raise StartRefused(f"base_source or base_digest: {error.message}") from error
    if verify:
        found = compute_digest(directory)
        if found != manifest.digest:
            raise StartRefused(
                f"{base_name} has the digest {found}, its manifest says {manifest.digest}: the files were "
                "changed or damaged. Delete the base's directory and add it again"
            )
    return manifest, directory


def _packaged(name: BaseName, catalog: BaseCatalog, data_directory: Path) -> str:
    if name.tenant is None and name.base in PACKAGED_BASES:
        return name.base
    known = ", ".join([m.name for m in catalog.list()] + sorted(PACKAGED_BASES))
    raise StartRefused(
        f"base {name.base!r} is not in {data_directory}; available: {known}. Add one with 'finetuned base "
        "add', or set base_source"
    )


def _add(source: str, name: BaseName, digest: str, data_directory: Path) -> None:
    options = ["--name", str(name), "--digest", digest, "--data-dir", str(data_directory)]
    _LOG.info("base_started", base=str(name), source=source, note="once; what follows is its progress")
    said = _run([sys.executable, "-m", "finetuned_service", "base", "add", *options, "--", source])
    if said is not None:
        raise StartRefused(f"{name} could not be put in place: {said}")
    _LOG.info("base_finished", base=str(name))


def _run(command: Sequence[str]) -> str | None:
    """Run to the end and log what it tells; None if all went well, else its last words."""
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        last = ""
        # As it comes, so that a fetch of an hour is seen to go on.
        for line in process.stderr or ():
            if line.strip():
                last = line.strip()
                _LOG.info("base_progress", said=last)
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode} (9 may be a lack of memory); {last}"
    return last.removeprefix("finetuned: ")
