"""Adapters through a real server, with PEFT as the oracle: in, served, mixed, out."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from finetuned import Client
from finetuned.errors import (
    AdapterIncompatible,
    EtagMismatch,
    InvalidAdapterFiles,
    NotFound,
    ResourceInUse,
    Unavailable,
)
from finetuned_service.text.tokenizer import BaseTokenizer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from served_oracle import PROMPT, ask, check_against_oracle
from tiny_models import load_plain, save_tiny_adapter
from tiny_server import TinyServer


def make_adapter(server: TinyServer, directory: Path, seed: int, rank: int = 4) -> Path:
    return save_tiny_adapter(directory, server.base_directory, seed=seed, rank=rank).directory


def imported(client: Client, server: TinyServer, directory: Path, name: str, seed: int, rank: int = 4) -> str:
    """A PEFT-made adapter in the registry; returns the version's name."""
    made = make_adapter(server, directory, seed, rank)
    digest = client.server_info().base.digest
    return client.adapters.import_directory(made, name, expected_base_digest=digest).name


@pytest.fixture(scope="module")
def prompt_ids(server: TinyServer) -> list[int]:
    return BaseTokenizer.load(server.base_directory).encode(PROMPT.text, add_special_tokens=True)


def test_peft_adapter_is_served_as_peft_serves_it(
    client: Client, server: TinyServer, tmp_path: Path, prompt_ids: list[int]
) -> None:
    version = imported(client, server, tmp_path / "a", "oracle", seed=1)
    reply = ask(client, "oracle")
    assert reply.served_by.adapter_version == version
    assert reply.served_by.modules == 14
    assert reply.served_by.base_digest == client.server_info().base.digest
    model = PeftModel.from_pretrained(load_plain(server.base_directory), str(tmp_path / "a")).eval()
    check_against_oracle(reply, model, prompt_ids)
    check_against_oracle(ask(client, None), load_plain(server.base_directory), prompt_ids)


def test_mixed_batch_gives_each_what_it_gets_alone(
    client: Client, server: TinyServer, tmp_path: Path, prompt_ids: list[int]
) -> None:
    names = ["mixed-a", "mixed-b", "mixed-c"]
    for seed, name in enumerate(names):
        imported(client, server, tmp_path / name, name, seed=10 + seed, rank=2 + 3 * seed)
    asked: list[str | None] = [*names, None]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda name: ask(client, name), asked))
    for name, reply in zip(asked, replies, strict=True):
        base = load_plain(server.base_directory)
        model = base if name is None else PeftModel.from_pretrained(base, str(tmp_path / name)).eval()
        check_against_oracle(reply, model, prompt_ids)
    assert len({reply.text for reply in replies}) == len(replies)


def test_export_loads_in_peft_and_imports_again(
    client: Client, server: TinyServer, tmp_path: Path, prompt_ids: list[int]
) -> None:
    imported(client, server, tmp_path / "in", "travels", seed=3)
    exported = client.adapters.export("travels", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    check_against_oracle(ask(client, "travels"), load_peft_directory(server, tmp_path / "out"), prompt_ids)
    (tmp_path / "out" / "manifest.json").unlink()
    again = client.adapters.import_directory(
        tmp_path / "out", "travels-again", expected_base_digest=client.server_info().base.digest
    )
    assert again.digest == client.adapters.version("travels").digest
    assert exported.version.endswith("/versions/1")


def load_peft_directory(server: TinyServer, directory: Path) -> object:
    return PeftModel.from_pretrained(load_plain(server.base_directory), str(directory)).eval()


@pytest.mark.parametrize("harm", ["flip a bit", "cut off", "remove"])
def test_damaged_files_are_refused_and_an_import_of_the_same_repairs_them(
    client: Client, server: TinyServer, tmp_path: Path, harm: str
) -> None:
    imported(client, server, tmp_path / "1", "damaged", seed=36)
    alone = ask(client, "damaged").text
    client.adapters.unload("damaged")
    digest = client.adapters.version("damaged").digest
    weights = server.data_directory / "adapters" / digest[7:] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    if harm != "remove":
        weights.write_bytes(whole[:-3] if harm == "cut off" else whole[:-3] + b"***")
    with pytest.raises((InvalidAdapterFiles, Unavailable)):
        ask(client, "damaged")
    imported(client, server, tmp_path / "2", "damaged", seed=36)
    assert weights.read_bytes() == whole
    assert ask(client, "damaged").text == alone
    client.adapters.delete("damaged")


def test_version_2_is_not_live_before_its_alias_moves(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    first = imported(client, server, tmp_path / "1", "moves", seed=4)
    before = ask(client, "moves").text
    second = imported(client, server, tmp_path / "2", "moves", seed=5)
    assert ask(client, "moves").served_by.adapter_version == first
    alias = client.adapters.alias("moves@default")
    client.adapters.set_alias("moves@default", "moves@2", etag=alias.etag)
    after = ask(client, "moves")
    assert (after.served_by.adapter_version, after.text != before) == (second, True)
    with pytest.raises(EtagMismatch):
        client.adapters.set_alias("moves@default", "moves@1", etag=alias.etag)
    client.adapters.rollback("moves@default")
    assert ask(client, "moves").text == before
    assert ask(client, "moves@2").text == after.text
    with pytest.raises(ResourceInUse):
        client.adapters.delete_version("moves@1")
    client.adapters.delete_version("moves@2")
    with pytest.raises(NotFound):
        ask(client, "moves@2")


class TestRefusedImports:
    """Nothing is stored, whatever is wrong with the files."""

    @pytest.fixture
    def made(self, server: TinyServer, tmp_path: Path) -> Path:
        return make_adapter(server, tmp_path / "made", seed=8)

    def refuse(self, client: Client, made: Path, error: type[Exception] = InvalidAdapterFiles) -> str:
        digest = client.server_info().base.digest
        with pytest.raises(error) as caught:
            client.adapters.import_directory(made, "refused", expected_base_digest=digest)
        with pytest.raises(NotFound):
            client.adapters.get("refused")
        return str(caught.value)

    def change(self, made: Path, change: object) -> None:
        path = made / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)  # type: ignore[operator]
        save_file(tensors, path, metadata={"format": "pt"})

    def test_wrong_shape(self, client: Client, made: Path) -> None:
        def cut(tensors: dict[str, torch.Tensor]) -> None:
            name = next(iter(tensors))
            tensors[name] = tensors[name][:, :-1].clone()

        self.change(made, cut)
        self.refuse(client, made)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, client: Client, made: Path, value: float) -> None:
        self.change(made, lambda tensors: next(iter(tensors.values())).view(-1)[3:4].fill_(value))
        self.refuse(client, made)

    def test_missing_tensor(self, client: Client, made: Path) -> None:
        self.change(made, lambda tensors: tensors.pop(next(iter(tensors))))
        self.refuse(client, made)

    def test_extra_tensor(self, client: Client, made: Path) -> None:
        self.change(made, lambda tensors: tensors.update(surprise=torch.zeros(2)))
        assert "surprise" in self.refuse(client, made)

    def test_header_that_lies(self, client: Client, made: Path) -> None:
        path = made / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        data[:8] = (len(data) * 2).to_bytes(8, "little")
        path.write_bytes(bytes(data))
        self.refuse(client, made)

    def test_pickle(self, client: Client, made: Path) -> None:
        torch.save({"x": torch.zeros(2)}, made / "adapter_model.safetensors")
        assert "pickle" in self.refuse(client, made)

    def test_another_base(self, client: Client, made: Path) -> None:
        other = "sha256:" + "0" * 64
        with pytest.raises(AdapterIncompatible) as caught:
            client.adapters.import_directory(made, "refused", expected_base_digest=other)
        assert caught.value.metadata["adapter_base_digest"] == other

    def test_unverified_base_is_accepted_and_recorded(
        self, client: Client, made: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(made, tmp_path / "copy")
        version = client.adapters.import_directory(copy, "unverified", accept_unverified_base=True)
        assert version.base_verified is False
