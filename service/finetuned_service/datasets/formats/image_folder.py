"""A zip of images in folders, one folder a class; nothing of it is ever written under its own names."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)
"""What the library raises of a zip that is damaged, or of a kind that it does not read."""
_ENCRYPTED, _PATCHED = 0x1 | 0x40, 0x20
"""Flags of an entry (APPNOTE 4.4.4)."""
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file browsers leave in folders."""
_MAX_RATIO = 100
"""Images hardly compress; a file that shrinks more than this is there to fill the disk."""
_MAX_ENTRIES = 65_535
_MAX_DIRECTORY_BYTES = 16 * 1024 * 1024
_END_BYTES, _MAX_COMMENT_BYTES, _LOCATOR_BYTES = 22, 65_535, 20
"""Sizes of what ends a zip (APPNOTE 4.3.15, 4.3.16)."""
_INSTEAD = "Split it, or use Parquet with a column of image bytes"
_SMALL_BYTES = 1024 * 1024
"""Up to here the ratio is not asked: an icon of one colour shrinks far."""


def read_image_folder(source: Path, limits: DataLimits) -> Records:
    """One record for each image, in order of name; its class is the name of the folder that holds it.

    Raises:
        InvalidData: the zip is damaged, unpacks to too much, has entries that point out of it, or images at
            different depths; naming the entry. Nothing was unpacked then.
    """
    _refuse_directory(source)
    try:
        with zipfile.ZipFile(source) as archive:
            for entry in _images(archive.infolist(), limits):
                yield Record(f"entry {entry.filename!r}", _content(archive, entry, limits))
    except _DAMAGE as error:
        raise InvalidData(f"the file is not readable as a zip ({error}); write it again") from error


def _refuse_directory(source: Path) -> None:
    """Refuse a list of entries that the library would read into far more memory than the file takes."""
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - _END_BYTES - _MAX_COMMENT_BYTES - _LOCATOR_BYTES))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + _END_BYTES:
        raise InvalidData("the file is not a zip; expected a zip with one folder a class")
    directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    if directory_bytes > _MAX_DIRECTORY_BYTES or b"PK\x06\x07" in tail[max(0, end - _LOCATOR_BYTES) : end]:
        raise InvalidData(
            f"the zip's list of entries is too long; allowed: {_MAX_ENTRIES} entries and {_MAX_DIRECTORY_BYTES} "
            f"bytes, without zip64. {_INSTEAD}"
        )


def _images(entries: Sequence[zipfile.ZipInfo], limits: DataLimits) -> list[zipfile.ZipInfo]:
    if len(entries) > _MAX_ENTRIES:
        raise InvalidData(f"the zip has {len(entries)} entries; allowed: {_MAX_ENTRIES}. {_INSTEAD}")
    _refuse_bombs(entries, limits)
    for entry in entries:
        _refuse_escape(entry)
    images = sorted(filter(_is_content, entries), key=lambda entry: entry.filename)
    for before, entry in pairwise(images):
        if before.filename == entry.filename:
            raise _refused(entry, "is there twice; keep one")
    _refuse_uneven(images)
    return images


def _refuse_bombs(entries: Sequence[zipfile.ZipInfo], limits: DataLimits) -> None:
    size_bytes = sum(entry.file_size for entry in entries)
    if size_bytes > limits.max_unpacked_bytes:
        raise InvalidData(
            f"the zip unpacks to {size_bytes} bytes; allowed: {limits.max_unpacked_bytes}. Its largest entry is "
            f"{max(entries, key=lambda entry: entry.file_size).filename!r}",
            metadata={"max_unpacked_bytes": str(limits.max_unpacked_bytes)},
        )
    for entry in entries:
        ratio = entry.file_size / max(1, entry.compress_size)
        if entry.file_size > _SMALL_BYTES and ratio > _MAX_RATIO:
            raise _refused(
                entry,
                f"unpacks to {entry.file_size} bytes, {ratio:.0f} times its size in the zip; allowed: {_MAX_RATIO} "
                "times. It is no photograph",
            )


def _refuse_escape(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = PurePosixPath(name).parts
    if not name or not (parts or entry.is_dir()):
        raise _refused(entry, "has no name of a file; names are folder/file")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in entry.orig_filename:
        raise _refused(entry, "points out of the zip; names are folder/file, without '..', '\\' and drives")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _refused(entry, "is a link or a device; put the image itself there")
    if not 0 <= entry.header_offset < 2**32:
        raise _refused(entry, "is said to lie outside of the file; write the zip again")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(entry, "is encrypted; write the zip without a password")
    if entry.compress_type not in _METHODS or entry.flag_bits & _PATCHED:
        raise _refused(entry, "is compressed in a way that is not read; use deflate, or store it")


def _is_content(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return not (entry.is_dir() or path.name in _LITTER or path.parts[0] == "__MACOSX")


def _refuse_uneven(images: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what is no folder of classes: a zip of a training and a test part has its classes twice."""
    first: PurePosixPath | None = None
    for entry in images:
        path = PurePosixPath(entry.filename)
        if len(path.parts) < 2:
            raise _refused(entry, "lies in no folder, and the folder is its class; put it into one")
        above = path.parent.parent
        first = above if first is None else first
        if above != first:
            raise _refused(
                entry,
                f"has its folder in {str(above)!r}, and the ones before in {str(first)!r}; the folders of the classes "
                "stand side by side: make a zip of each part",
            )


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limits: DataLimits) -> object:
    if entry.file_size > limits.max_image_bytes:
        return InvalidData(f"has {entry.file_size} bytes; allowed: {limits.max_image_bytes}")
    try:
        image = archive.read(entry)
    except _DAMAGE as error:
        return InvalidData(f"is damaged in the zip ({error})")
    return {"image": image, "label": PurePosixPath(entry.filename).parent.name}


def _refused(entry: zipfile.ZipInfo, said: str) -> InvalidData:
    return InvalidData(f"the entry {entry.filename!r} of the zip {said}; nothing was stored")
