"""Digests: what they depend on, and what they must not depend on."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned_service.digests import (
    DTYPE_BYTES,
    TensorInfo,
    mapped_tensors,
    read_safetensors_header,
    safetensors_digest,
    tensors_digest,
)
from finetuned_service.errors import InvalidAdapterFiles
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

Entry = tuple[str, str, tuple[int, ...], bytes]

TENSORS: list[Entry] = [
    ("b", "F32", (2, 1), b"12345678"),
    ("a", "BF16", (2,), b"abcd"),
]
CONFIG = {"r": 4, "name": "é"}


def test_the_digest_is_the_one_described() -> None:
    """Spelled out by hand: a change of the rule would orphan everything that is stored."""
    expected = hashlib.sha256()
    for header, data in ((b'["a","BF16",[2]]', b"abcd"), (b'["b","F32",[2,1]]', b"12345678")):
        expected.update(struct.pack("<Q", len(header)) + header + data)
    config = b'{"name":"\\u00e9","r":4}'
    expected.update(struct.pack("<Q", len(config)) + config)
    assert f"sha256:{expected.hexdigest()}" == tensors_digest(TENSORS, CONFIG)


def test_order_does_not_count() -> None:
    assert tensors_digest(TENSORS, CONFIG) == tensors_digest(
        reversed(TENSORS), dict(reversed(list(CONFIG.items())))
    )


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, "c"), (1, "I32"), (2, (1, 2)), (2, (2,)), (3, b"12345679")],
    ids=["name", "dtype", "shape", "dimensions", "bytes"],
)
def test_each_part_of_a_tensor_counts(place: int, value: Any) -> None:
    changed: Any = (*TENSORS[0][:place], value, *TENSORS[0][place + 1 :])
    assert tensors_digest(TENSORS, CONFIG) != tensors_digest([changed, TENSORS[1]], CONFIG)


def test_configuration_and_number_of_tensors_count() -> None:
    digests = {
        tensors_digest(TENSORS, CONFIG),
        tensors_digest(TENSORS, {**CONFIG, "r": 5}),
        tensors_digest(TENSORS, {}),
        tensors_digest(TENSORS[:1], CONFIG),
        tensors_digest([], CONFIG),
    }
    assert len(digests) == 5


def test_bytes_cannot_move_between_neighbours() -> None:
    one = [("a", "U8", (2,), b"xy"), ("b", "U8", (1,), b"z")]
    other = [("a", "U8", (1,), b"x"), ("b", "U8", (2,), b"yz")]
    assert tensors_digest(one, {}) != tensors_digest(other, {})


ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(["float32", "float16", "int8", "int64", "uint8"]).flatmap(
        lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: np.ones(shape, dtype))
    ),
    max_size=5,
)


@given(arrays=ARRAYS)
def test_headers_are_read_as_safetensors_reads_them(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray[Any, Any]]
) -> None:
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    infos = read_safetensors_header(path)
    expected = {name: array.shape for name, array in load_file(path).items()}
    assert expected == {info.name: info.shape for info in infos}
    raw = path.read_bytes()
    assert all(raw[info.start : info.end] == arrays[info.name].tobytes() for info in infos)


def test_metadata_and_the_order_in_the_file_do_not_count(tmp_path: Path) -> None:
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.arange(6, dtype=np.float16)}
    save_file(arrays, tmp_path / "plain")
    save_file(arrays, tmp_path / "described", metadata={"z": "1", "a": "2"})
    header = {
        "b": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12]},
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
    }
    write(tmp_path / "turned", json.dumps(header).encode(), arrays["b"].tobytes() + arrays["a"].tobytes())
    digests = {safetensors_digest([tmp_path / name], CONFIG) for name in ("plain", "described", "turned")}
    assert len(digests) == 1


def test_shards_give_the_digest_of_the_whole(tmp_path: Path) -> None:
    arrays = {name: np.full(5, place, np.float32) for place, name in enumerate("abcd")}
    save_file(arrays, tmp_path / "whole")
    for name, array in arrays.items():
        save_file({name: array}, tmp_path / name)
    whole = safetensors_digest([tmp_path / "whole"], CONFIG)
    assert whole == safetensors_digest([tmp_path / name for name in "dbca"], CONFIG)
    assert whole == tensors_digest(((n, "F32", (5,), a.tobytes()) for n, a in arrays.items()), CONFIG)


def test_mapped_tensors_are_views_for_the_block_only(tmp_path: Path) -> None:
    save_file({"a": np.arange(3, dtype=np.int8)}, tmp_path / "file")
    with mapped_tensors(tmp_path / "file") as tensors:
        ((name, dtype, shape, view),) = tensors
        assert (name, dtype, shape, bytes(view), view.readonly) == ("a", "I8", (3,), b"\0\1\2", True)
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def write(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(**changes: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}).encode()


def test_an_honest_header_passes(tmp_path: Path) -> None:
    write(tmp_path / "file", entry(), bytes(8))
    start = 8 + len(entry())
    assert read_safetensors_header(tmp_path / "file") == [TensorInfo("a", "F32", (2,), start, start + 8)]


@pytest.mark.parametrize(
    ("header", "data", "found"),
    [
        (entry(), bytes(7), "its header describes"),
        (entry(), bytes(9), "its header describes"),
        (entry(data_offsets=[0, 12]), bytes(12), "needs 8 bytes; its header gives it 12"),
        (entry(data_offsets=[8, 0]), bytes(8), "needs 8 bytes; its header gives it -8"),
        (entry(data_offsets=[-8, 0]), bytes(8), "needs 8 bytes"),
        (entry(data_offsets=[4, 12]), bytes(12), "without gaps or overlaps"),
        (entry(data_offsets=[0]), bytes(8), "lacks dtype, shape or data_offsets"),
        (entry(data_offsets="0-8"), bytes(8), "lacks dtype, shape or data_offsets"),
        (entry(data_offsets=[0.0, 8.0]), bytes(8), "lacks dtype, shape or data_offsets"),
        (entry(shape=[-2]), bytes(8), "shapes of non-negative integers"),
        (entry(shape=[True, 2]), bytes(8), "shapes of non-negative integers"),
        (entry(shape=[2.0]), bytes(8), "shapes of non-negative integers"),
        (entry(shape=2), bytes(8), "lacks dtype, shape or data_offsets"),
        (entry(shape=[2**62, 2**62]), bytes(8), "needs"),
        (entry(dtype="F99"), bytes(8), "has dtype 'F99'"),
        (entry(dtype=7), bytes(8), "lacks dtype, shape or data_offsets"),
        (b'{"a": []}', b"", "lacks dtype, shape or data_offsets"),
        (b'{"a": null}', b"", "lacks dtype, shape or data_offsets"),
        (entry()[:-1] + b"," + entry()[1:], bytes(8), "not the JSON of the safetensors format"),
        (b"\xff\xfe", b"", "not the JSON of the safetensors format"),
        (b"{" * 100_000, b"", "not the JSON of the safetensors format"),
        (b'{"a":' * 100_000, b"", "not the JSON of the safetensors format"),
        (b"7", b"", "not a JSON object"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: bytes, data: bytes, found: str) -> None:
    write(tmp_path / "file", header, data)
    with pytest.raises(InvalidAdapterFiles, match=found):
        read_safetensors_header(tmp_path / "file")


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    same = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write(tmp_path / "file", json.dumps({"a": same, "b": same}).encode(), bytes(8))
    with pytest.raises(InvalidAdapterFiles, match="without gaps or overlaps"):
        read_safetensors_header(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63) + b"{}", b"\x80\x04K\x01."])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidAdapterFiles):
        read_safetensors_header(tmp_path / "file")


@given(content=st.binary(max_size=200))
def test_no_bytes_give_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    with suppress(InvalidAdapterFiles):
        assert read_safetensors_header(path) == []  # only "{}" and its like describe nothing


def test_widths_are_numpys() -> None:
    names = {
        "F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    }  # fmt: skip
    assert {name: np.dtype(code).itemsize for name, code in names.items()} | {"BF16": 2} == DTYPE_BYTES


def test_a_file_that_became_shorter_is_not_read_past_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": np.zeros(4, np.float32)}, path)
    infos = read_safetensors_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidAdapterFiles, match="became shorter"), mapped_tensors(path, infos):
        raise AssertionError("it was mapped")
