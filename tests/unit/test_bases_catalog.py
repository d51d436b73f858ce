"""The catalog: shared and tenant-owned bases, and what deleting leaves behind."""

from __future__ import annotations

import json
import struct

import pytest
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.errors import NotFound, ResourceInUse
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import WeightFormat


def add_base(data_directory, name: str):
    directory = BaseCatalog(data_directory).path(BaseName.parse(name))
    directory.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8}
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    manifest = describe_base(
        directory, name=BaseName.parse(name), weight_format=WeightFormat.BF16, source="a test"
    )
    write_manifest(directory, manifest)
    return manifest


@pytest.fixture
def catalog(tmp_path):
    for name in ("bases/b", "bases/a", "tenants/acme/bases/tuned", "tenants/other/bases/secret"):
        add_base(tmp_path, name)
    return BaseCatalog(tmp_path)


def test_lists_shared_and_own_in_order_of_name(catalog):
    assert [m.name for m in catalog.list("acme")] == ["bases/a", "bases/b", "tenants/acme/bases/tuned"]


def test_lists_only_shared_without_a_tenant(catalog):
    assert [m.name for m in catalog.list()] == ["bases/a", "bases/b"]


def test_an_empty_data_directory_has_no_bases(tmp_path):
    assert BaseCatalog(tmp_path / "absent").list("acme") == []


def test_unfinished_and_foreign_directories_are_not_listed(catalog, tmp_path):
    (tmp_path / "bases" / ".c.partial").mkdir()
    (tmp_path / "bases" / ".c.partial" / "base.json").write_text("{")
    (tmp_path / "bases" / "notes").mkdir()
    assert [m.name for m in catalog.list()] == ["bases/a", "bases/b"]


def test_get_finds_by_name(catalog):
    name = BaseName.parse("tenants/acme/bases/tuned")
    assert catalog.get(name).name == str(name)


@pytest.mark.parametrize("name", ["bases/tuned", "tenants/acme/bases/a", "tenants/acme/bases/secret"])
def test_get_of_another_owners_base_finds_nothing(catalog, name):
    with pytest.raises(NotFound, match=name):
        catalog.get(BaseName.parse(name))


def test_delete_removes_all_files(catalog, tmp_path):
    catalog.delete(BaseName.parse("bases/a"))
    assert [path.name for path in (tmp_path / "bases").iterdir()] == ["b"]
    with pytest.raises(NotFound):
        catalog.delete(BaseName.parse("bases/a"))


def test_delete_of_a_base_in_use_changes_nothing(catalog):
    with pytest.raises(ResourceInUse, match=r"this server, tenants/acme/jobs/j1"):
        catalog.delete(BaseName.parse("bases/a"), in_use=["this server", "tenants/acme/jobs/j1"])
    assert catalog.get(BaseName.parse("bases/a")).name == "bases/a"


def test_a_listing_beside_a_delete_never_fails(catalog, tmp_path, monkeypatch):
    """A base may vanish between the look at its directory and the reading of its manifest."""
    import finetuned_service.bases.catalog as module

    real = module.read_manifest

    def vanishing(directory):
        if directory.name == "a":
            (directory / "base.json").unlink()
        return real(directory)

    monkeypatch.setattr(module, "read_manifest", vanishing)
    assert [m.name for m in catalog.list()] == ["bases/b"]
