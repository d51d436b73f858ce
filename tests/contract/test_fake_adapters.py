"""Adapters, versions, aliases and bases of both clients against the fake server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from both_clients import open_client, write_rows
from finetuned import Method, Residency
from finetuned.errors import (
    AdapterIncompatible,
    AlreadyExists,
    EtagMismatch,
    InvalidAdapterFiles,
    InvalidField,
    NotFound,
    ResourceInUse,
    Unavailable,
)
from finetuned.testing import FakeServer

VERSION = "tenants/a/adapters/mine/versions/{}"


@pytest.fixture(autouse=True)
def _two_versions(fake_server: FakeServer, tmp_path: Path) -> None:
    with open_client("sync", fake_server.endpoint) as client:
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
        for _ in range(2):
            client.jobs.wait(client.train(dataset="rows", adapter="mine").name).check()


def write_peft(directory: Path, **manifest: str) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (directory / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 3000)
    if manifest:
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_get_and_list(client: Any) -> None:
    adapter = client.adapters.get("mine")
    assert adapter.name == "tenants/a/adapters/mine"
    assert adapter.latest_version == VERSION.format(2)
    assert adapter.version_count == 2
    # The default alias stays on the first version until it is told to move.
    assert [alias.version for alias in adapter.aliases] == [VERSION.format(1)]
    assert list(client.adapters.list()) == [adapter]
    with pytest.raises(NotFound):
        client.adapters.get("none")
    with pytest.raises(InvalidField, match="without '@'"):
        client.adapters.get("mine@1")


def test_versions(client: Any) -> None:
    versions = list(client.adapters.versions("mine", page_size=1))
    assert [version.name for version in versions] == [VERSION.format(2), VERSION.format(1)]
    assert client.adapters.version("mine@2") == versions[0]
    assert client.adapters.version("mine") == versions[1]
    assert versions[0].method is Method.LORA
    assert versions[0].lineage.dataset == "tenants/a/datasets/rows"
    assert list(client.adapters.versions("mine", method=Method.IA3)) == []
    assert list(client.adapters.versions("mine", compatible_only=True)) == versions


def test_aliases_move_and_roll_back(client: Any) -> None:
    made = client.adapters.set_alias("mine@prod", 1)
    assert (made.version, made.previous_version) == (VERSION.format(1), "")
    moved = client.adapters.set_alias("mine@prod", "mine@2", etag=made.etag)
    assert (moved.version, moved.previous_version) == (VERSION.format(2), VERSION.format(1))
    with pytest.raises(EtagMismatch) as refused:
        client.adapters.set_alias("mine@prod", 1, etag=made.etag)
    assert refused.value.metadata == {"current_etag": moved.etag}
    assert client.adapters.alias("mine@prod") == moved
    assert client.adapters.version("mine@prod").name == VERSION.format(2)
    assert client.adapters.rollback("mine@prod").version == VERSION.format(1)
    assert [alias.name.rpartition("/")[2] for alias in client.adapters.aliases("mine")] == ["default", "prod"]
    assert client.adapters.delete_alias("mine@prod") is None
    with pytest.raises(NotFound):
        client.adapters.alias("mine@prod")


def test_refused_moves(client: Any, fake_server: FakeServer) -> None:
    with pytest.raises(NotFound):
        client.adapters.set_alias("mine@prod", 9)
    with pytest.raises(NotFound, match="has not moved"):
        client.adapters.rollback("mine")
    with pytest.raises(ResourceInUse, match="default") as refused:
        client.adapters.delete_alias("mine")
    assert refused.value.metadata == {"used_by": "tenants/a/adapters/mine"}
    with pytest.raises(InvalidField, match="a version; expected an alias"):
        client.adapters.set_alias("mine@1", 2)
    with pytest.raises(InvalidField, match="expected a version"):
        client.adapters.set_alias("mine@prod", "mine@canary")


def test_a_move_is_not_repeated_when_the_connection_breaks(client: Any, fake_server: FakeServer) -> None:
    client.adapters.set_alias("mine@prod", 1)
    fake_server.lose_answer("SetAlias")
    with pytest.raises(Unavailable):
        client.adapters.set_alias("mine@prod", 2)
    assert fake_server.calls("SetAlias") == 2
    assert client.adapters.alias("mine@prod").previous_version == VERSION.format(1)


def test_a_move_is_repeated_when_the_service_refused_it(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("SetAlias", Unavailable("starting", retry_after_seconds=0.001), times=2)
    assert client.adapters.set_alias("mine@prod", 2).version == VERSION.format(2)
    assert fake_server.calls("SetAlias") == 3


def test_load_and_unload(client: Any) -> None:
    [loaded] = client.adapters.load("mine@2", residency=Residency.HOST, pin=True).residency
    assert (loaded.residency, loaded.pinned, loaded.replica) == (Residency.HOST, True, "fake-0")
    assert [one.name for one in client.adapters.resident()] == [client.adapters.version("mine@2").name]
    [lowered] = client.adapters.unload("mine@2", residency=Residency.HOST).residency
    assert (lowered.residency, lowered.pinned) == (Residency.HOST, False)
    with pytest.raises(InvalidField):
        client.adapters.unload("mine@2", residency=Residency.DEVICE)
    [unloaded] = client.adapters.unload("mine@2").residency
    assert list(client.adapters.resident()) == []
    assert (unloaded.residency, unloaded.pinned) == (Residency.STORED, False)
    [still] = client.adapters.unload("mine@2", residency=Residency.HOST).residency
    assert still.residency is Residency.STORED
    with pytest.raises(InvalidField):
        client.adapters.load("mine", residency=Residency.STORED)


def test_delete(client: Any) -> None:
    with pytest.raises(ResourceInUse) as refused:
        client.adapters.delete_version("mine@1")
    assert refused.value.metadata == {"used_by": "tenants/a/adapters/mine/aliases/default"}
    assert client.adapters.delete_version("mine@2") is None
    with pytest.raises(NotFound):
        client.adapters.version("mine@2")
    with pytest.raises(InvalidField, match="expected a version"):
        client.adapters.delete_version("mine")
    assert client.adapters.delete("mine") is None
    with pytest.raises(NotFound):
        client.adapters.get("mine")


def test_what_is_imported_is_exported(client: Any, tmp_path: Path) -> None:
    source = write_peft(tmp_path / "peft")
    base_digest = client.server_info().base.digest
    version = client.adapters.import_directory(source, "other", expected_base_digest=base_digest)
    assert version.name == "tenants/a/adapters/other/versions/1"
    assert version.base_verified
    assert version.lineage.source == "peft"
    exported = client.adapters.export("other", tmp_path / "new" / "out")
    assert exported.version == version.name
    assert exported.files == ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
    for name in exported.files[:2]:
        assert (Path(exported.directory) / name).read_bytes() == (source / name).read_bytes()


def test_an_import_names_its_base_or_says_that_it_does_not(client: Any, tmp_path: Path) -> None:
    source = write_peft(tmp_path / "peft")
    with pytest.raises(InvalidField, match="expected_base_digest"):
        client.adapters.import_directory(source, "other")
    unverified = client.adapters.import_directory(source, "other", accept_unverified_base=True, source="hub")
    assert not unverified.base_verified
    assert unverified.lineage.source == "hub"
    with pytest.raises(AdapterIncompatible) as refused:
        client.adapters.import_directory(source, "other", expected_base_digest="sha256:00")
    assert refused.value.metadata["adapter_base_digest"] == "sha256:00"
    known = write_peft(tmp_path / "known", base_digest=client.server_info().base.digest)
    assert client.adapters.import_directory(known, "other").base_verified


def test_an_import_of_what_is_no_adapter(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterFiles, match="no adapter_config"):
        client.adapters.import_directory(tmp_path, "other")
    broken = write_peft(tmp_path / "broken")
    (broken / "manifest.json").write_text("{")
    with pytest.raises(InvalidAdapterFiles, match="is not JSON"):
        client.adapters.import_directory(broken, "other")
    assert fake_server.calls("ImportAdapter") == 0


def test_a_broken_import_starts_again(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    source = write_peft(tmp_path / "peft")
    fake_server.fail("ImportAdapter", after_messages=3)
    fake_server.lose_answer("ImportAdapter")
    version = client.adapters.import_directory(source, "other", accept_unverified_base=True)
    assert version.name == "tenants/a/adapters/other/versions/1"
    assert client.adapters.get("other").version_count == 1
    assert fake_server.calls("ImportAdapter") == 3


def test_an_export_leaves_nothing_half_done(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.fail("ExportAdapter", after_messages=1)
    with pytest.raises(Unavailable):
        client.adapters.export("mine", tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(AlreadyExists, match="not empty"):
        client.adapters.export("mine", taken)
    assert [item.name for item in taken.iterdir()] == ["file"]


def test_bases(client: Any) -> None:
    client.jobs.wait(client.quantize("int8", "small").name).check()
    small = "tenants/a/bases/small"
    assert [base.name for base in client.bases.list(page_size=1)] == ["bases/fake", small]
    assert client.bases.get("bases/fake").resident
    with pytest.raises(ResourceInUse):
        client.bases.delete("fake")
    assert client.bases.delete(small) is None
    with pytest.raises(NotFound):
        client.bases.get(small)
