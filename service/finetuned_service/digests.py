"""Content digests of tensors: what identifies a base model and an adapter.

`sha256:` over, for each tensor in order of name: name, dtype, shape, bytes; then the canonical
JSON of an allowlisted configuration. Never over file bytes: two safetensors files with the same
tensors can differ in the order of their metadata. Knows no torch: tensors come as buffers.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.errors import InvalidAdapterFiles

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit (https://github.com/huggingface/safetensors)."""

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

_compact = json.JSONEncoder(separators=(",", ":")).encode
"""One encoder for all: `json.dumps` would make a new one for each tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a safetensors header describes it; `start` and `end` are absolute file offsets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def tensors_digest(
    tensors: Iterable[tuple[str, str, tuple[int, ...], Any]], config: Mapping[str, object]
) -> str:
    """The digest of (name, safetensors dtype, shape, buffer) entries and a canonical configuration.

    Args:
        tensors: in any order; each buffer is C-contiguous bytes-like. Names must be unique.
        config: JSON values only, already reduced to what identifies the weights.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, buffer in sorted(tensors, key=lambda entry: entry[0]):
        header = _compact([name, dtype, shape]).encode()
        digest.update(struct.pack("<Q", len(header)))
        digest.update(header)
        digest.update(buffer)
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    digest.update(struct.pack("<Q", len(canonical)))
    digest.update(canonical)
    return f"sha256:{digest.hexdigest()}"


def read_safetensors_header(path: Path) -> list[TensorInfo]:
    """All tensors of a safetensors file, checked against the file's real size.

    Raises:
        InvalidAdapterFiles: if the header lies: size, JSON, dtypes, shapes, gaps or overlaps.
    """
    return parse_safetensors_header(path.name, *raw_safetensors_header(path))


def raw_safetensors_header(path: Path, max_bytes: int = MAX_HEADER_BYTES) -> tuple[bytes, int]:
    """The JSON in front of a safetensors file, not looked into, and the size of the whole file in bytes.

    Raises:
        InvalidAdapterFiles: if it is longer than the file or than `max_bytes`.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise InvalidAdapterFiles(
                f"{path.name} has {size_bytes} bytes; a safetensors file has at least 8"
            )
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(max_bytes, size_bytes - 8):
            bound = f"allowed: {max_bytes}" if header_bytes > max_bytes else f"the file has {size_bytes}"
            raise InvalidAdapterFiles(
                f"{path.name} says that its header has {header_bytes} bytes; {bound}. Only safetensors files are "
                "accepted (a pickle is never read)"
            )
        return file.read(header_bytes), size_bytes


def parse_safetensors_header(file_name: str, raw: bytes, size_bytes: int) -> list[TensorInfo]:
    """See `read_safetensors_header`; `raw` and `size_bytes` as `raw_safetensors_header` gives them."""
    try:
        header = json.loads(raw, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterFiles(
            f"{file_name} has a header that is not the JSON of the safetensors format"
        ) from error
    if not isinstance(header, dict):
        raise InvalidAdapterFiles(f"{file_name} has a header that is not a JSON object")
    infos = [
        _tensor_info(file_name, name, entry, 8 + len(raw))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    position = 8 + len(raw)
    for info in sorted(infos, key=lambda info: (info.start, info.end)):
        if info.start != position:
            raise InvalidAdapterFiles(
                f"{file_name}: tensor {info.name!r} starts at byte {info.start}, expected {position}; "
                "tensors must follow one another without gaps or overlaps"
            )
        position = info.end
    if position != size_bytes:
        raise InvalidAdapterFiles(
            f"{file_name}: its header describes {position} bytes; the file has {size_bytes}"
        )
    return infos


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("duplicate names")
    return names


def _tensor_info(file_name: str, name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*dims], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise InvalidAdapterFiles(
                f"{file_name}: tensor {name!r} lacks dtype, shape or data_offsets in the header"
            )
    shape: tuple[int, ...] = tuple(dims)
    if dtype not in DTYPE_BYTES or not all(type(dim) is int and dim >= 0 for dim in dims):
        raise InvalidAdapterFiles(
            f"{file_name}: tensor {name!r} has dtype {dtype!r} and shape {dims!r}; allowed dtypes: "
            f"{', '.join(DTYPE_BYTES)}, shapes of non-negative integers"
        )
    expected_bytes = DTYPE_BYTES[dtype] * math.prod(shape)
    if start < 0 or end - start != expected_bytes:
        raise InvalidAdapterFiles(
            f"{file_name}: tensor {name!r} of {dtype} {list(shape)} needs {expected_bytes} bytes; "
            f"its header gives it {end - start}"
        )
    return TensorInfo(name, dtype, shape, data_start + start, data_start + end)


@contextmanager
def mapped_tensors(
    path: Path, infos: Sequence[TensorInfo] | None = None
) -> Generator[list[tuple[str, str, tuple[int, ...], memoryview]]]:
    """The tensors of a safetensors file as read-only views of its mapped pages, while the block runs.

    Args:
        path: of the file.
        infos: what `read_safetensors_header` said of it, if that was asked already.

    Raises:
        InvalidAdapterFiles: it is shorter than `infos` say.
    """
    if infos is None:
        infos = read_safetensors_header(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if len(mapped) < max((info.end for info in infos), default=0):
            raise InvalidAdapterFiles(f"{path.name} became shorter while it was read; try again")
        whole = memoryview(mapped)
        views = [(i.name, i.dtype, i.shape, whole[i.start : i.end]) for i in infos]
        try:
            yield views
        finally:
            for *_, view in views:
                view.release()
            whole.release()


def safetensors_digest(paths: Iterable[Path], config: Mapping[str, object]) -> str:
    """`tensors_digest` of one or several safetensors files, read through the page cache."""
    entries: list[tuple[str, str, tuple[int, ...], bytes | memoryview]] = []
    paths = list(paths)
    if len(paths) == 1:
        with mapped_tensors(paths[0]) as views:
            return tensors_digest(views, config)
    for path in paths:
        with mapped_tensors(path) as views:
            entries.extend((name, dtype, shape, bytes(view)) for name, dtype, shape, view in views)
    return tensors_digest(entries, config)
