"""Where ImportDataset may read: directories that the server's settings name, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from finetuned_service.errors import InvalidField


class ImportRoots:
    """The directories under which files may be read."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)

    def path_of(self, uri: str) -> Path:
        """The file that a `file://` URI names; links are followed before it is compared with the roots.

        Raises:
            InvalidField: another scheme or host, not under a root, or no file that can be read.
        """
        path = _local_path(uri)
        if not any(path.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(map(str, self._roots)) or "none: set import_roots of the server"
            raise InvalidField.one("uri", f"{_shown(uri)} is not under an import root; allowed: {allowed}")
        if not os.access(path, os.R_OK) or not path.is_file():
            raise InvalidField.one("uri", f"{_shown(uri)} is not a file that the server can read")
        return path


def _local_path(uri: str) -> Path:
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path, errors="strict"))
        local = parts.scheme == "file" and parts.netloc in {"", "localhost"} and path.is_absolute()
        if not local or parts.query or parts.fragment:
            raise InvalidField.one("uri", f"is {_shown(uri)}; allowed: file:///… under an import root")
        return path.resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, a circle of links
        raise InvalidField.one("uri", f"is {_shown(uri)}, which does not name a file") from error


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= 200 else f"{uri[:200]}…")
