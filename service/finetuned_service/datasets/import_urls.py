"""Files of object stores that ImportDataset may read: under prefixes that the server's settings name.

fsspec and what it needs for a store are imported when they are needed: most servers import nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from finetuned_service.errors import FinetunedError, InvalidData, InvalidField, Unavailable
from finetuned_service.storage.files import refusing_full_disk

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_AMBIGUOUS = re.compile(r"[?#\\;\x00-\x1f\x7f-\x9f]|::")
"""What ends a path for one reader and not for another, is dropped by some, or chains file systems in fsspec."""
_PIECE_BYTES = 1024 * 1024


class ImportUrls:
    """The prefixes under which files may be read."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._prefixes = tuple(prefix.rstrip("/") + "/" for prefix in prefixes)

    def claims(self, uri: str) -> bool:
        """Whether it is the URL of an object store, allowed or not."""
        return bool(_SCHEME.match(uri)) and not uri.startswith("file:")

    def fetch(self, uri: str, target: Path, max_bytes: int) -> Path:
        """Copy the file to `target`.

        Raises:
            InvalidField: it is not under a prefix, does not exist or may not be read.
            InvalidData: it has more than `max_bytes`.
            ResourceExhausted: the disk is full.
            Unavailable: the store does not answer.
        """
        shown = repr(uri if len(uri) <= 200 else f"{uri[:200]}…")
        scheme, _, path = uri.partition("://")
        if not (uri.startswith(self._prefixes) and _plain(path, escapes=scheme in {"http", "https"})):
            allowed = ", ".join(self._prefixes) or "none: set import_urls of the server"
            raise InvalidField.one(
                "uri",
                f"{shown} is not under an import URL; allowed: {allowed}. No name in it "
                "may be empty or of dots alone, or hold '?', '#', ';', a backslash or a control character; over HTTP also no "
                "'@', and no escapes of these, of '.', '/' or '%'",
            )
        try:
            with refusing_full_disk():
                _copy(uri, target, max_bytes)
        except FinetunedError:
            raise
        except ImportError as error:
            raise InvalidField.one(
                "uri",
                f"{shown} needs a library that the server lacks ({error}); for s3:// the server's operator installs "
                "finetuned-service[s3]",
            ) from error
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise InvalidField.one(
                "uri", f"{shown} is not a file that the server may read; correct it, or allow the server to"
            ) from error
        except Exception as error:
            raise Unavailable(
                f"{shown} could not be read: {type(error).__name__}; check that the store can be reached, then try "
                "again"
            ) from error
        return target


def _plain(path: str, *, escapes: bool) -> bool:
    """Whether all who read the path (fsspec, its libraries, the store) find the same names in it, none of them dots.

    fsspec's HTTP decodes `escapes` and resolves dots before it asks, servers and what stands before them do afterwards. In
    names of object stores they mean nothing.
    """
    if not escapes:
        return not _AMBIGUOUS.search(path) and all(name.strip(" .") for name in path.split("/"))
    try:
        escaped = "".join(unquote(run, errors="strict") for run in _ESCAPES.findall(path))
    except UnicodeDecodeError:
        return False
    if (
        "%" in _ESCAPES.sub("", path)
        or set("%./") & set(escaped)
        or _AMBIGUOUS.search(unquote(path))
        or "@" in unquote(path)
    ):
        return False
    # Some servers drop dots and spaces at the end of a name.
    return all(unquote(name).strip(" .") for name in path.split("/"))


def _copy(uri: str, target: Path, max_bytes: int) -> None:
    import fsspec  # noqa: PLC0415 - see above

    files, path = fsspec.core.url_to_fs(uri)
    size_bytes = 0
    with files.open(path, "rb") as remote, target.open("wb") as local:
        while piece := remote.read(_PIECE_BYTES):
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise InvalidData(
                    f"the file has more than {max_bytes} bytes, which is the limit. Split it",
                    metadata={"max_bytes": str(max_bytes)},
                )
            local.write(piece)
