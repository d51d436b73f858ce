"""Bases from object stores and hubs: only what a base is made of, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from finetuned_service.bases import fetch
from finetuned_service.bases.convert import add_base, import_directory
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import BaseManifest, compute_digest, read_config
from finetuned_service.bases.provide import provide_base
from finetuned_service.bases.source import RemoteSource
from finetuned_service.errors import (
    AlreadyExists,
    FinetunedError,
    InvalidField,
    ResourceExhausted,
    StartRefused,
    Unavailable,
)
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import Pooling
from fsspec.implementations.memory import MemoryFileSystem
from tiny_encoders import save_encoder
from tiny_hub import COMMIT, REPOSITORY, tiny_hub
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_tokenizer

SOURCE = RemoteSource("memory://models/tiny")
OTHER_DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a directory, with two files that must not be taken."""
    directory = tmp_path_factory.mktemp("files") / "tiny"
    save_tiny_base(directory, vocab_size=byte_level().get_vocab_size())
    write_tokenizer(directory)
    (directory / "pytorch_model.bin").write_bytes(b"a pickle")
    (directory / "modeling_tiny.py").write_text("raise RuntimeError('executed')\n")
    return directory


@pytest.fixture(scope="module")
def digest(files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return import_directory(files, tmp_path_factory.mktemp("here") / "tiny").digest


@pytest.fixture
def memory(files: Path) -> Iterator[MemoryFileSystem]:
    """The same model in fsspec's file system in memory."""
    found: MemoryFileSystem = fsspec.filesystem("memory")
    for path in files.iterdir():
        found.pipe(f"/models/tiny/{path.name}", path.read_bytes())
    yield found
    if found.exists("/models"):
        found.rm("/models", recursive=True)


def add(directory: Path, digest: str = "") -> BaseManifest:
    return add_base(SOURCE, directory / "tiny", name=BaseName("tiny"), expected_digest=digest)


def test_a_remote_directory_gives_the_same_base_as_a_local_one(memory, digest, tmp_path):
    told: list[tuple[str, float]] = []
    manifest = add_base(
        SOURCE,
        tmp_path / "tiny",
        name=BaseName("tiny"),
        expected_digest=digest,
        progress=lambda what, fraction: told.append((what, fraction)),
    )
    assert manifest.digest == digest == compute_digest(tmp_path / "tiny")
    assert (manifest.name, manifest.source) == ("bases/tiny", "memory://models/tiny")
    assert any(what.startswith("fetching model.safetensors") for what, _ in told)
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_pooling_in_a_directory_of_its_own_is_fetched(memory, tmp_path):
    memory.rm("/models/tiny", recursive=True)
    source = save_encoder(tmp_path / "source")
    for path in source.iterdir():
        memory.pipe(f"/models/tiny/{path.name}", path.read_bytes())
    memory.pipe("/models/tiny/1_Pooling/config.json", b'{"pooling_mode": "cls"}')
    memory.pipe("/models/tiny/onnx/model.onnx", b"another form")
    add(tmp_path)
    assert base_inputs(read_config(tmp_path / "tiny"))[0] is Pooling.CLS


def test_pickles_and_code_beside_the_weights_are_never_fetched(memory, tmp_path, monkeypatch):
    fetched: list[str] = []
    get_file = MemoryFileSystem.get_file

    def watched(self: Any, rpath: str, lpath: str, **options: Any) -> None:
        fetched.append(rpath.rsplit("/", 1)[-1])
        get_file(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", watched)
    add(tmp_path)
    assert fetched[-1] == "model.safetensors"
    assert set(fetched) <= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    }


def test_a_wrong_digest_puts_nothing_in_place(memory, digest, tmp_path):
    with pytest.raises(InvalidField, match=rf"digest: is {OTHER_DIGEST}; .* has {digest}\. Nothing was put"):
        add(tmp_path, OTHER_DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_there_must_be_the_one_asked_for(memory, digest, files, tmp_path):
    first = import_directory(files, tmp_path / "tiny")
    assert add(tmp_path, digest) == first  # from elsewhere, and the same
    with pytest.raises(AlreadyExists, match=rf"digest {digest}; expected {OTHER_DIGEST}"):
        add(tmp_path, OTHER_DIGEST)
    with pytest.raises(AlreadyExists, match="was made from directory 'tiny', not from memory://models/tiny"):
        add(tmp_path)


def test_a_fetch_that_breaks_off_leaves_nothing_and_the_next_one_is_whole(
    memory, digest, tmp_path, monkeypatch
):
    get_file = MemoryFileSystem.get_file

    def torn(self: Any, rpath: str, lpath: str, **options: Any) -> None:
        if rpath.endswith(".safetensors"):
            Path(lpath).write_bytes(b"half")
            raise ConnectionResetError("the peer went away")
        get_file(self, rpath, lpath, **options)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "get_file", torn)
        with pytest.raises(Unavailable, match=r"could not be fetched: ConnectionResetError.*try again"):
            add(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert add(tmp_path).digest == digest


def test_a_file_that_comes_short_is_not_used(memory, tmp_path, monkeypatch):
    def short(self: Any, rpath: str, lpath: str, **_options: Any) -> None:
        data = self.cat_file(rpath)
        Path(lpath).write_bytes(data[:-1] if rpath.endswith(".safetensors") else data)

    monkeypatch.setattr(MemoryFileSystem, "get_file", short)
    with pytest.raises(Unavailable, match=r"model\.safetensors .* came with \d+ bytes instead of \d+"):
        add(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_fetch_left_is_cleared_and_never_used(memory, digest, tmp_path):
    for name in (".tiny.fetched", ".tiny.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
        (tmp_path / name / "model-00001-of-00002.safetensors").write_bytes(b"half")
    assert add(tmp_path).digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_disk_without_room_is_told_before_anything_is_fetched(memory, tmp_path, monkeypatch):
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _path: Usage)
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(ResourceExhausted, match=r"needs \d+ MB of disk while it is made, 1 MB are free"):
        add(tmp_path)
    assert list(tmp_path.iterdir()) == []


def no_config(memory: MemoryFileSystem) -> None:
    memory.rm("/models/tiny/config.json")


def pickles_only(memory: MemoryFileSystem) -> None:
    memory.rm("/models/tiny/model.safetensors")


def own_code(memory: MemoryFileSystem) -> None:
    memory.pipe("/models/tiny/config.json", b'{"model_type": "llama", "auto_map": {"AutoModel": "m.M"}}')


def endless_tokenizer(memory: MemoryFileSystem) -> None:
    memory.pipe("/models/tiny/tokenizer.json", b" " * 100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"it has no config\.json"),
        (pickles_only, r"its weights are pickles \(pytorch_model\.bin\)"),
        (own_code, "auto_map"),
        (endless_tokenizer, r"tokenizer\.json has 100 bytes; allowed: 99"),
        (lambda memory: memory.rm("/models/tiny", recursive=True), "does not exist, or these credentials"),
    ],
)
def test_what_is_no_base_is_refused_before_its_weights_are_fetched(
    memory, tmp_path, monkeypatch, damage, message
):
    damage(memory)
    if damage is endless_tokenizer:
        monkeypatch.setattr(fetch, "_MAX_SMALL_BYTES", 99)
        for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            memory.pipe(f"/models/tiny/{name}", b"{}")
    get_file = MemoryFileSystem.get_file

    def no_weights(self: Any, rpath: str, lpath: str, **options: Any) -> None:
        assert not rpath.endswith(".safetensors")
        get_file(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", no_weights)
    with pytest.raises(InvalidField, match=message):
        add(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [("nowhere://a/b", "cannot be read: Protocol not known"), ("gs://a/b", "not installed")],
)
def test_a_file_system_that_is_not_known_is_refused(tmp_path, url, message):
    with pytest.raises(FinetunedError, match=message):
        add_base(RemoteSource(url), tmp_path / "tiny", name=BaseName("tiny"))
    assert list(tmp_path.iterdir()) == []


def test_a_server_fetches_its_base_from_s3_once(files, digest, tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="models")
        for path in files.iterdir():
            bucket.upload_file(str(path), f"tiny/v1/{path.name}")

        manifest, directory = provide_base("tiny", tmp_path, source="s3://models/tiny/v1", digest=digest)
        with pytest.raises(StartRefused, match="s3://models/tiny/v2 does not exist"):
            provide_base("later", tmp_path, source="s3://models/tiny/v2")
    finally:
        server.stop()
    assert (manifest.digest, manifest.source) == (digest, "s3://models/tiny/v1")
    # The bucket is gone; the base is there.
    again = provide_base("tiny", tmp_path, source="s3://models/tiny/v1", digest=digest)
    assert again == (manifest, directory)
    with pytest.raises(StartRefused, match="not from s3://models/tiny/v2"):
        provide_base("tiny", tmp_path, source="s3://models/tiny/v2")
    with pytest.raises(StartRefused, match=rf"base_digest: .*{digest}; expected {OTHER_DIGEST}"):
        provide_base("tiny", tmp_path, digest=OTHER_DIGEST)


def test_a_server_fetches_its_base_from_a_hub(files, digest, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with tiny_hub(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.failures = 1  # which the hub's own library bears: it goes on where the file broke off
        manifest, _ = provide_base("tiny", tmp_path, source=f"hf://{REPOSITORY}", digest=digest)
        with pytest.raises(StartRefused, match="hf://acme/absent@main does not exist"):
            provide_base("absent", tmp_path, source="hf://acme/absent")
    assert (manifest.digest, manifest.source) == (digest, f"hf://{REPOSITORY}@main")
    assert manifest.recipe == f"fetched at commit {COMMIT}"
    assert "pytorch_model.bin" not in hub.asked
    assert "modeling_tiny.py" not in hub.asked


def test_a_wrong_digest_refuses_the_start_with_both_digests(files, digest, tmp_path):
    with pytest.raises(StartRefused, match=rf"{OTHER_DIGEST}.*{digest}.*correct the source"):
        provide_base("tiny", tmp_path, source=str(files), digest=OTHER_DIGEST)
    assert list((tmp_path / "bases").iterdir()) == []
