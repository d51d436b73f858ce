"""Files that came through gzip, unpacked within bounds."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from finetuned_service.errors import InvalidData

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1024 * 1024


def unpacked(source: Path, target: Path, max_bytes: int) -> Path:
    """`source`, or where it came through gzip the file that was in it, written to `target`.

    Raises:
        InvalidData: it is damaged, is gzip in gzip, or unpacks to more than `max_bytes`.
    """
    if not _is_gzip(source):
        return source
    size_bytes = 0
    try:
        with gzip.open(source, "rb") as packed, target.open("wb") as plain:
            while piece := packed.read(_PIECE_BYTES):
                size_bytes += len(piece)
                if size_bytes > max_bytes:
                    raise InvalidData(
                        f"the gzip file unpacks to more than {max_bytes} bytes, which is the limit; its own size is "
                        f"{source.stat().st_size}. Split it",
                        metadata={"max_unpacked_bytes": str(max_bytes)},
                    )
                plain.write(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidData(f"the gzip file is damaged ({error}); compress it again") from error
    if _is_gzip(target):
        raise InvalidData("the file is gzip in gzip; compress it once")
    return target


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
