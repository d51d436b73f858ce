"""Which code a run is of: this benchmark's, the service's, and the versions of what both stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import finetuned_service

ROOT = Path(__file__).parents[2]
_SERVICE = Path(finetuned_service.__file__).parent
READ = (
    Path(__file__).parent,
    ROOT / "benchmarks/peers",
    ROOT / "examples/digits.py",
    ROOT / "requirements.lock",
    _SERVICE,
)
"""Files, and directories with all that is in them."""


def sources_digest(read: Iterable[Path] = READ) -> str:
    """Of the names and the bytes of all files; of a report's or a server's, too, so that none is forgotten."""
    found = hashlib.sha256()
    for root in read:
        for path in _files(root):
            # With lengths, so that no two trees read alike.
            for part in (str(path.relative_to(root.parent)).encode(), path.read_bytes()):
                found.update(f"{len(part)}:".encode() + part)
    return found.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    return (path for path in paths if path.is_file() and path.suffix != ".pyc")
