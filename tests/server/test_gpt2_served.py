"""A GPT-2 without a chat template behind a real server: completed, trained on, its adapters imported and exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetuned import Client, Lora, Qlora, RawText
from finetuned.errors import InvalidData, InvalidField
from finetuned_service.text.tokenizer import BaseTokenizer
from on_device import DEVICE
from served_jobs import finished, start
from tiny_gpt2 import load_gpt2_peft, load_plain_gpt2, save_gpt2_adapter, save_tiny_gpt2
from tiny_models import oracle_tokens
from tiny_server import running
from tiny_tokenizers import byte_level, write_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "gpt"
    save_tiny_gpt2(directory, vocab_size=byte_level().get_vocab_size())
    return write_tokenizer(directory, template=None)


@pytest.fixture(scope="module")
def gpt(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {"base": "gpt", "base_source": source.as_uri()}
    with (
        running(tmp_path_factory.mktemp("gpt") / "data", **settings) as server,
        Client(server.endpoint) as client,
    ):
        yield client


def greedy(model: object, source: Path, text: str) -> list[int]:
    return oracle_tokens(model, BaseTokenizer.load(source).encode(text, add_special_tokens=True), 8)


def test_raw_text_is_completed_as_transformers_does(gpt: Client, source: Path) -> None:
    reply = gpt.generate(RawText("one two three"), plain_base=True, max_tokens=8, ignore_eos=True)
    assert list(reply.token_ids) == greedy(load_plain_gpt2(source), source, "one two three")
    info = gpt.server_info()
    assert info.base.architecture == "GPT2LMHeadModel"
    native = "; not native: its architecture is gpt2" if DEVICE == "cpu" else ""
    assert info.compute_path.startswith(f"plain PyTorch, torch.float32 on {DEVICE}")
    assert info.compute_path.endswith(native)


def test_a_conversation_is_refused_with_the_remedy(gpt: Client) -> None:
    with pytest.raises(InvalidField, match="need a chat template and the base has none; send the text as it"):
        gpt.generate("hello", plain_base=True)


def test_an_adapter_of_peft_is_imported_served_and_exported_as_it_was(
    gpt: Client, source: Path, tmp_path: Path
) -> None:
    made = save_gpt2_adapter(tmp_path / "made", source, seed=4)
    version = gpt.adapters.import_directory(
        made.directory, "theirs", expected_base_digest=gpt.server_info().base.digest
    )
    assert version.digest == made.digest
    reply = gpt.generate(RawText("one two"), adapter="theirs", max_tokens=8, ignore_eos=True)
    assert list(reply.token_ids) == greedy(load_gpt2_peft(source, made.directory), source, "one two")
    assert reply.served_by.modules == 8
    gpt.adapters.export("theirs@1", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    again = load_gpt2_peft(source, tmp_path / "out")
    assert list(reply.token_ids) == greedy(again, source, "one two")


def test_completions_are_trained_on_and_what_needs_a_template_is_not(gpt: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}:", "completion": " {n} it is"}}\n' for n in range(20)))
    gpt.datasets.upload(rows, "completions")
    job = finished(gpt, start(gpt, "completions", "mine")).check()
    assert job.train is not None
    assert job.train.lora is not None
    assert job.train.lora.target_modules == ("c_attn", "c_fc", "c_proj")
    assert job.train_result is not None
    reply = gpt.generate(RawText("say 3:"), adapter="mine", max_tokens=4)
    assert reply.served_by.adapter_digest == job.train_result.digest
    rows.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    gpt.datasets.upload(rows, "chats")
    with pytest.raises(InvalidData, match="line 1 is a conversation, and the base has no chat template"):
        start(gpt, "chats", "mine")


def test_it_is_quantized_and_low_rank_updates_train_over_the_result(gpt: Client, tmp_path: Path) -> None:
    done = gpt.jobs.wait(gpt.quantize("INT8", "small").name, timeout_seconds=600.0).check()
    assert done.quantize_result is not None
    report = done.quantize_result.report
    assert report.quantized_bytes < report.source_bytes
    assert report.quantized_perplexity == pytest.approx(report.source_perplexity, rel=0.05)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}:", "completion": " {n} it is"}}\n' for n in range(20)))
    gpt.datasets.upload(rows, "over")
    settings = {"base": done.quantize_result.base, "lora": None, "qlora": Qlora(lora=Lora(rank=4))}
    finished(gpt, start(gpt, "over", "over", steps=2, **settings)).check()
    assert gpt.adapters.version("over@1").modules == 8
