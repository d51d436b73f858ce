"""A server that is started on an empty data directory with `base_source`: it serves, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned import Client
from finetuned_service.errors import StartRefused
from tiny_models import save_tiny_base
from tiny_server import running
from tiny_tokenizers import byte_level, write_tokenizer

OTHER_DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    save_tiny_base(directory, vocab_size=byte_level().get_vocab_size())
    write_tokenizer(directory)
    return directory


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_from_a_directory_is_served_and_kept(source: Path, tmp_path: Path) -> None:
    settings = {"base": "mine", "base_source": source.as_uri()}
    with running(tmp_path / "data", **settings) as server, Client(server.endpoint) as client:
        base = client.server_info().base
        assert (base.name, base.source) == ("bases/mine", "directory 'model'")
        assert client.generate("hello", plain_base=True, max_tokens=2).served_by.base_digest == base.digest
    for path in source.iterdir():
        path.unlink()
    settings["base_digest"] = base.digest
    with running(tmp_path / "data", **settings) as server, Client(server.endpoint) as client:
        assert client.server_info().base.digest == base.digest


@pytest.mark.parametrize(
    ("damage", "digest", "message"),
    [
        (
            lambda d: edit_config(d, model_type="bloom", architectures=["BloomForCausalLM"]),
            "",
            r"a base of model type 'bloom' .* available: gpt2, llama",
        ),
        (lambda d: d.rename(d.with_name("elsewhere")), "", "'model' does not exist; expected a directory"),
        (lambda d: (d / "config.json").unlink(), "", r"it has no config\.json"),
        (lambda d: (d / "model.safetensors").rename(d / "model.bin"), "", r"pickles \(model\.bin\)"),
        (
            lambda _d: None,
            OTHER_DIGEST,
            rf"is {OTHER_DIGEST}; the base in .* has sha256:.*correct the source",
        ),
    ],
)
def test_a_start_is_refused_with_the_reason_and_leaves_no_base(
    source: Path, tmp_path: Path, damage, digest: str, message: str
) -> None:
    damage(source)
    settings = {"base": "mine", "base_source": str(source), "base_digest": digest}
    with pytest.raises(StartRefused, match=message), running(tmp_path / "data", **settings):
        pass
    assert list((tmp_path / "data" / "bases").iterdir()) == []
