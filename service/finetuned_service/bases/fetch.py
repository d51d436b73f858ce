"""Brings the files of a base from a hub or an object store into a directory of this machine.

Only what a base consists of is taken: configuration, safetensors, tokenizer; never a pickle, never
code. What can be refused by the list of files or by the small ones is refused before any weight
moves. Broken connections are tried again by the libraries themselves.

fsspec and huggingface_hub are imported when they are needed: most starts fetch nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.bases.importable import DESCRIPTION_FILES, check_names, check_small_files, is_weights
from finetuned_service.bases.source import FetchedSource, HubSource, RemoteSource
from finetuned_service.errors import FinetunedError, InvalidField, ResourceExhausted, Unavailable
from finetuned_service.storage.files import refusing_full_disk

Progress = Callable[[str, float], None]
"""Called with what is being done now and the fraction of the work that is behind."""

_SMALL_FILES = (
    "generation_config.json",
    "model.safetensors.index.json",
    *DESCRIPTION_FILES,
)
_MAX_SMALL_BYTES = 64 * 1024 * 1024
"""Far above the largest tokenizer."""
_MARGIN_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a source holds at its top and where its small files lie, and how to copy some of it."""

    sizes: Mapping[str, int]
    """Bytes by name."""
    commit: str
    """What the source's revision stands for now; "" where there is no such thing."""
    copy: Callable[[Sequence[str], Path], None]
    """Copies files of these names into a directory."""


def fetch_files(source: FetchedSource, staging: Path, progress: Progress) -> str:
    """Copy the files of a base into `staging`, an empty directory.

    Args:
        source: where from.
        staging: on the disk where the base will be made: room is needed for both.
        progress: told what is done, with fractions of the fetch from 0 to 1.

    Returns:
        The commit that was fetched; "" where the source has none.

    Raises:
        InvalidField: the source cannot be read, or is no base; nothing of its weights was fetched.
        ResourceExhausted: the disk has no room for it; nothing was fetched.
        Unavailable: it broke off, in spite of being tried again.
    """
    with _naming(source):
        listing = _list_hub(source) if isinstance(source, HubSource) else _list_remote(source)
    check_names(frozenset(listing.sizes))
    small = [name for name in _SMALL_FILES if name in listing.sizes]
    weights = sorted(filter(is_weights, listing.sizes))
    for name in small:
        if listing.sizes[name] > _MAX_SMALL_BYTES:
            found = f"its {name} has {listing.sizes[name]} bytes; allowed: {_MAX_SMALL_BYTES}"
            raise InvalidField.one("source", found)
    weights_bytes = sum(listing.sizes[name] for name in weights)
    # Once as they are fetched, once as the base is written from them.
    require_room(staging, 2 * weights_bytes)
    with _naming(source):
        progress(f"fetching {len(small)} small files", 0.0)
        listing.copy(small, staging)
        check_small_files(staging)
        done_bytes = 0
        for name in weights:
            behind = done_bytes / max(1, weights_bytes)
            progress(f"fetching {name}, {listing.sizes[name] / 1e6:,.0f} MB", behind)
            listing.copy([name], staging)
            done_bytes += listing.sizes[name]
    for name in (*small, *weights):
        found_bytes = (staging / name).stat().st_size
        if found_bytes != listing.sizes[name]:
            raise Unavailable(
                f"{name} of {source.origin} came with {found_bytes} bytes instead of {listing.sizes[name]}; "
                "try again"
            )
    return listing.commit


def require_room(directory: Path, needed_bytes: int) -> None:
    """Refuse what the disk under `directory` cannot take.

    Raises:
        ResourceExhausted: naming what is free and what is needed.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes + _MARGIN_BYTES:
        raise ResourceExhausted(
            f"the base needs {(needed_bytes + _MARGIN_BYTES) / 1e6:,.0f} MB of disk while it is made, "
            f"{free_bytes / 1e6:,.0f} MB are free in the data directory; free some, or give it a larger volume",
            metadata={"subject": "server"},
        )


def _list_hub(source: HubSource) -> _Listing:
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - see above
    from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415 - see above

    disable_progress_bars()
    info = HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    files = info.siblings or []
    if info.sha is None:
        raise InvalidField.one("source", f"the hub does not tell the commit of {source.origin}")
    commit: str = info.sha

    def copy(names: Sequence[str], directory: Path) -> None:
        # By the commit, so that a push between two files cannot mix two states.
        snapshot_download(
            source.repository, revision=commit, allow_patterns=list(names), local_dir=directory, max_workers=1
        )

    return _Listing({file.rfilename: file.size or 0 for file in files}, commit, copy)


def _list_remote(source: RemoteSource) -> _Listing:
    import fsspec  # noqa: PLC0415 - see above

    scheme = source.url.partition(":")[0]
    try:
        files, root = fsspec.core.url_to_fs(source.url)
    except ValueError as error:
        raise InvalidField.one("source", f"{source.origin} cannot be read: {error}") from error
    except ImportError as error:
        extra = "pip install 'finetuned-service[s3]'" if scheme == "s3" else str(error)
        raise InvalidField.one(
            "source", f"{source.origin} needs a library that is not installed: {extra}"
        ) from error
    sizes: dict[str, int] = {}
    directories = [""]
    for parent in directories:
        entries: list[dict[str, Any]] = files.ls(f"{root}/{parent}".rstrip("/"), detail=True, refresh=True)
        for entry in entries:
            name = parent + str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
            if entry["type"] == "file":
                sizes[name] = int(entry["size"] or 0)
            elif any(small.startswith(f"{name}/") for small in _SMALL_FILES):
                directories.append(f"{name}/")

    def copy(names: Sequence[str], directory: Path) -> None:
        for name in names:
            (directory / name).parent.mkdir(exist_ok=True)
            files.get_file(f"{root}/{name}", str(directory / name))

    return _Listing(sizes, "", copy)


@contextmanager
def _naming(source: FetchedSource) -> Generator[None]:
    """Errors of the libraries, as ours: not there and not allowed are the caller's, the rest may pass."""
    try:
        with refusing_full_disk():
            yield
    except FinetunedError:
        raise
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise _unreadable(source, error) from error
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) in {401, 403, 404}:
            raise _unreadable(source, error) from error
        raise Unavailable(
            f"{source.origin} could not be fetched: {_said(error)}. Check the credentials and that it can be "
            "reached from here (proxy, HF_ENDPOINT, AWS_ENDPOINT_URL), then try again"
        ) from error


def _unreadable(source: FetchedSource, error: Exception) -> InvalidField:
    return InvalidField.one(
        "source",
        f"{source.origin} does not exist, or these credentials may not read it ({_said(error)}); correct it, "
        "or give others in the environment (HF_TOKEN, AWS_ACCESS_KEY_ID and its like)",
    )


def _said(error: Exception) -> str:
    """The error in one line: these libraries write paragraphs, with addresses of their help pages."""
    first = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__} {first}".strip().rstrip(".")
