"""Adapters in and out: what comes in is checked as a whole, what goes out comes in again."""

from __future__ import annotations

import json
import math

import pytest
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.transfer import (
    ACCEPTED_FILES,
    AdapterImports,
    export_chunks,
)
from finetuned_service.errors import AdapterIncompatible, InvalidAdapterFiles, InvalidUpload, NotFound
from finetuned_service.names import AdapterSelector
from finetuned_service.storage.chunks import CHUNK_BYTES, FileChunk
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from tiny_files import LINEAR_SHAPES, write_adapter
from tiny_limits import stored_limits

SELECTOR = AdapterSelector("acme", "redact")
NO_REQUEST = RequestKey.of("acme", "", b"")
BASE, ROOT, OTHER = (f"sha256:{letter * 64}" for letter in "bro")


@pytest.fixture
def registry(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'finetuned.db'}")
    (tmp_path / "adapters").mkdir()
    yield AdapterRegistry(database, tmp_path / "adapters", stored_limits(tmp_path))
    database.close()


@pytest.fixture
def imports(tmp_path, registry):
    return AdapterImports(
        registry=registry,
        geometry=BaseGeometry(BASE, ROOT, LINEAR_SHAPES),
        staging_directory=tmp_path / "staging",
        max_rank=8,
        max_bytes=100_000,
    )


@pytest.fixture
def files(tmp_path):
    """The files of a good adapter, by name."""
    return {path.name: path.read_bytes() for path in write_adapter(tmp_path / "made").iterdir()}


def send(imports, files, *, expected_digest: str | None = BASE, source: str = "", request=NO_REQUEST):
    with imports.staging() as staged:
        for name, data in files.items():
            for offset in range(0, len(data), 100):
                staged.append(name, offset, data[offset : offset + 100])
        return imports.finish(staged, SELECTOR, expected_digest, source, request)


def left_behind(tmp_path) -> list[str]:
    return [path.name for room in ("staging", "adapters") for path in (tmp_path / room).iterdir()]


def test_an_import_becomes_the_next_version_with_the_facts_measured_here(imports, files, registry, tmp_path):
    version = send(imports, files, source="laptop")
    assert registry.resolve(SELECTOR) == version
    manifest = version.manifest
    assert (manifest.base_digest, manifest.base_root_digest, manifest.base_verified) == (BASE, ROOT, True)
    assert (manifest.rank, manifest.modules, manifest.parameters) == (2, 2, 2 * (4 + 4) + 2 * (6 + 4))
    assert (manifest.lineage.source, manifest.metrics) == ("laptop", ())
    assert left_behind(tmp_path) == [version.directory.name]
    assert sorted(path.name for path in version.directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_unverified_base_is_recorded(imports, files):
    manifest = send(imports, files, expected_digest=None).manifest
    assert (manifest.base_verified, manifest.lineage.source) == (False, "import")


def test_an_adapter_of_another_base_is_refused_before_its_files_come(imports):
    imports.check_base(None)
    imports.check_base(BASE)
    with pytest.raises(AdapterIncompatible) as refusal:
        imports.check_base(OTHER)
    assert refusal.value.metadata == {"adapter_base_digest": OTHER, "server_base_digest": BASE}


def test_an_adapter_of_another_base_is_refused_at_its_end_too(imports, files, tmp_path):
    with pytest.raises(AdapterIncompatible):
        send(imports, files, expected_digest=OTHER)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named_and_nothing_is_stored(imports, files, tmp_path, missing):
    del files[missing]
    with pytest.raises(InvalidAdapterFiles, match=f"^{missing} is missing"):
        send(imports, files)
    assert left_behind(tmp_path) == []


def test_refused_weights_leave_nothing(imports, tmp_path, registry):
    made = write_adapter(tmp_path / "bad", fill=math.nan)
    with pytest.raises(InvalidAdapterFiles, match="NaN"):
        send(imports, {path.name: path.read_bytes() for path in made.iterdir()})
    assert left_behind(tmp_path) == []
    assert registry.list("acme", PageRequest()).items == ()


def test_a_rank_over_the_limit_is_refused(imports, tmp_path):
    made = write_adapter(tmp_path / "large", rank=9)
    with pytest.raises(InvalidAdapterFiles, match="is 9; allowed: 1 to 8"):
        send(imports, {path.name: path.read_bytes() for path in made.iterdir()})


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "../adapter_config.json", "/etc/passwd", "", "sub/adapter_config.json"]
)
def test_other_files_are_refused(imports, name, tmp_path):
    with imports.staging() as staged, pytest.raises(InvalidUpload) as refusal:
        staged.append(name, 0, b"data")
    assert all(accepted in refusal.value.message for accepted in ACCEPTED_FILES)
    assert [
        path.name for path in tmp_path.rglob("*") if path.is_file() and "finetuned.db" not in path.name
    ] == []


def test_chunks_come_once_and_in_order(imports):
    with imports.staging() as staged:
        staged.append("manifest.json", 0, b"abc")
        for offset in (0, 2, 4, -1):
            with pytest.raises(InvalidUpload, match=f"has offset {offset}, expected 3"):
                staged.append("manifest.json", offset, b"def")
        staged.append("manifest.json", 3, b"def")
        assert (staged.directory / "manifest.json").read_bytes() == b"abcdef"


def test_a_file_over_the_limit_is_refused(imports):
    with imports.staging() as staged:
        staged.append("adapter_model.safetensors", 0, bytes(100_000))
        with pytest.raises(InvalidUpload, match="larger than 100000 bytes"):
            staged.append("adapter_model.safetensors", 100_000, b"x")


def test_a_repeated_import_gives_the_same_version(imports, files, tmp_path):
    request = RequestKey.of("acme", "r1", b"body")
    first = send(imports, files, request=request)
    assert send(imports, files, request=request) == first
    assert left_behind(tmp_path) == [first.directory.name]


def test_an_export_comes_in_again_with_the_same_digest(imports, files):
    first = send(imports, files)
    exported: dict[str, bytes] = {}
    for chunk in export_chunks(first):
        assert chunk.offset == len(exported.get(chunk.file_name, b""))
        exported[chunk.file_name] = exported.get(chunk.file_name, b"") + chunk.data
    assert list(exported) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert AdapterManifest.model_validate_json(exported["manifest.json"]) == first.manifest
    second = send(imports, exported)
    assert (second.version, second.manifest.digest) == (2, first.manifest.digest)


def test_what_is_exported_names_every_module_in_full(imports, files):
    version = send(imports, files)
    config = json.loads((version.directory / "adapter_config.json").read_bytes())
    assert sorted(config["target_modules"]) == sorted(LINEAR_SHAPES)


def test_large_files_go_out_in_pieces(imports, files):
    version = send(imports, files)
    size = CHUNK_BYTES + 10
    (version.directory / "adapter_model.safetensors").write_bytes(bytes(size))
    chunks = [c for c in export_chunks(version) if c.file_name == "adapter_model.safetensors"]
    assert [(c.offset, len(c.data)) for c in chunks] == [(0, CHUNK_BYTES), (CHUNK_BYTES, 10)]


def test_an_export_that_has_begun_outlives_the_deletion(imports, files, registry):
    version = send(imports, files)
    chunks = export_chunks(version)
    first = next(chunks)
    registry.delete_adapter(SELECTOR)
    rest = list(chunks)
    assert isinstance(first, FileChunk)
    assert [chunk.file_name for chunk in rest] == ["adapter_model.safetensors", "manifest.json"]
    with pytest.raises(NotFound, match="versions/1"):
        list(export_chunks(version))
