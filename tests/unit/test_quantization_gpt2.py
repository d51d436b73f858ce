"""GPT-2 quantized: its weights lie as [in, out] in their file and as [out, in] where they are packed."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.manifest import read_manifest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.task import EXIT_FINISHED, QuantizeFinished
from finetuned_service.quantization.run import run
from finetuned_service.quantization.store import align
from finetuned_service.quantization.text import measured_windows
from finetuned_service.text.tokenizer import BaseTokenizer
from packed_oracle import unpacked_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_bases import make_quantize_task
from tiny_gpt2 import load_plain_gpt2, save_gpt2_adapter, save_tiny_gpt2
from tiny_models import oracle_logits, peft_warnings_allowed, random_prompt
from tiny_tokenizers import byte_level, write_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    save_tiny_gpt2(source, vocab_size=byte_level().get_vocab_size(), n_embd=48, n_head=4)
    write_tokenizer(source, template=None)
    directory = tmp_path_factory.mktemp("bases") / "gpt"
    import_directory(source, directory)
    return directory


def perplexity(model: Any, base: Path) -> float:
    nats, tokens = 0.0, 0
    windows = measured_windows(BaseTokenizer.load(base), None, read_manifest(base).context_tokens)
    for window in windows:
        logits = oracle_logits(model, window)[:-1].double().log_softmax(-1)
        nats -= float(logits.gather(1, torch.tensor([[token] for token in window[1:]])).sum())
        tokens += len(window) - 1
    return math.exp(nats / tokens)


@pytest.mark.parametrize("name", ["a", "a-longer-name", "another-length"])
def test_tensors_begin_where_kernels_want_them(tmp_path: Path, name: str) -> None:
    """The header of a file has any multiple of 8 bytes."""
    path = tmp_path / WEIGHTS
    stored = {f"{name}.{n}": torch.randn(16, 16) for n in range(3)}
    save_file(stored, path, {"format": "pt"})
    before = path.read_bytes()
    align(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0
    found = load_file(path)
    assert all(torch.equal(found[key], stored[key]) for key in stored)
    assert len(found) == len(stored)
    assert path.stat().st_size < len(before) + 64
    assert [child.name for child in tmp_path.iterdir()] == [WEIGHTS]


@pytest.mark.parametrize("weight_format", ["INT8", "NF4"])
def test_what_is_measured_and_served_is_what_the_packed_weights_stand_for(
    base: Path, tmp_path: Path, weight_format: str
) -> None:
    task, reports = make_quantize_task(base, tmp_path, weight_format=weight_format), []
    threads = torch.get_num_threads()
    assert run(task, reports.append, threading.Event()) == EXIT_FINISHED
    torch.set_num_threads(threads)
    (report,) = [found.report for found in reports if isinstance(found, QuantizeFinished)]
    packed = Path(task.output_directory)
    assert report.quantized_modules == 8
    assert report.kept_modules == ("transformer.wte", "transformer.wpe", "lm_head")
    assert report.quantized_bytes < report.source_bytes
    assert linear_shapes(packed / WEIGHTS) == linear_shapes(base / WEIGHTS)
    plain = unpacked_model(base, packed, torch.float32)
    assert report.source_perplexity == pytest.approx(perplexity(load_plain_gpt2(base), base), rel=1e-5)
    assert report.quantized_perplexity == pytest.approx(perplexity(plain, base), rel=1e-4)
    prompt = random_prompt(3, 20)
    # Its whole modules lie in its file as in the base's, however they lie in the packed one.
    adapter = save_gpt2_adapter(tmp_path / "adapter", base, seed=1, modules_to_save=["c_proj"])
    with OfflineEngine(EngineModel.load(packed), EngineConfig("", kv_capacity_tokens=512)) as engine:
        found, adapted = (engine.logits(prompt, handle) for handle in (None, adapter.handle))
    torch.testing.assert_close(found, oracle_logits(plain, prompt), atol=2e-4, rtol=2e-4)
    with peft_warnings_allowed():
        peft = PeftModel.from_pretrained(plain, str(adapter.directory)).eval()
    torch.testing.assert_close(adapted, oracle_logits(peft, prompt), atol=2e-4, rtol=2e-4)
    assert (adapted - found).abs().max() > 0.05


def test_embeddings_of_positions_stay_as_they_are(base: Path, tmp_path: Path) -> None:
    task, reports = make_quantize_task(base, tmp_path, weight_format="INT8", quantize_embeddings=True), []
    threads = torch.get_num_threads()
    assert run(task, reports.append, threading.Event()) == EXIT_FINISHED
    torch.set_num_threads(threads)
    (report,) = [found.report for found in reports if isinstance(found, QuantizeFinished)]
    assert (report.quantized_modules, report.kept_modules) == (10, ("transformer.wpe",))
