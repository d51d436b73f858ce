"""Directories of Hugging Face's kind become bases, or are refused with a remedy and no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuned_service.bases.convert import convert_packaged, import_directory
from finetuned_service.bases.manifest import compute_digest, read_config, read_manifest
from finetuned_service.errors import AlreadyExists, FinetunedError, InvalidField, Unimplemented
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.names import BaseName
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.vocabulary import WeightFormat
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def save_model(
    directory: Path, config: PreTrainedConfig | None = None, *, dtype=torch.bfloat16, **options
) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES)).to(dtype)
    model.save_pretrained(directory, **options)
    vocabulary = {"<eos>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, 40)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.mark.parametrize(
    "config", [GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config]
)
def test_every_supported_architecture_imports_and_computes_the_same(tmp_path, config):
    source = save_model(tmp_path / "source", config(**SIZES))
    target = tmp_path / "bases" / "mine"
    manifest = import_directory(source, target)
    assert (manifest.name, manifest.architecture, manifest.context_tokens) == (
        "bases/mine",
        AutoModelForCausalLM.from_pretrained(source).__class__.__name__,
        64,
    )
    token_ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(token_ids).logits
        actual = AutoModelForCausalLM.from_pretrained(target)(token_ids).logits
    assert torch.equal(expected, actual)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, "FP32"), (torch.float16, "FP16"), (torch.bfloat16, "BF16")]
)
def test_weights_keep_their_dtype(tmp_path, dtype, expected):
    source = save_model(tmp_path / "source", dtype=dtype)
    assert import_directory(source, tmp_path / "mine").weight_format == expected


def test_the_manifest_tells_what_is_stored(tiny_source, tmp_path):
    manifest = import_directory(
        tiny_source, tmp_path / "mine", name=BaseName.parse("tenants/acme/bases/mine")
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_source)
    parameters = sum(p.numel() for p in model.parameters())
    assert (manifest.parameters, manifest.weight_bytes) == (parameters, 2 * parameters)
    assert manifest.digest == manifest.root_digest == compute_digest(tmp_path / "mine")
    assert read_manifest(tmp_path / "mine") == manifest


def test_shards_give_the_same_base_as_one_file(tiny_source, tmp_path):
    sharded = save_model(tmp_path / "sharded", max_shard_size="4KB")
    assert (sharded / "model.safetensors.index.json").exists()
    assert (
        import_directory(sharded, tmp_path / "a").digest
        == import_directory(tiny_source, tmp_path / "b").digest
    )


def test_only_known_files_are_copied_and_they_are_read_only(tmp_path):
    source = save_model(tmp_path / "source")
    for extra in ("modeling_mine.py", "optimizer.bin", "README.md", "special_tokens_map.json"):
        (source / extra).write_text("{}")
    import_directory(source, tmp_path / "mine")
    stored = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "mine").iterdir()}
    assert stored == dict.fromkeys(
        [
            "base.json",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
        0o444,
    )


def test_a_chat_template_inside_the_tokenizer_settings_gets_its_file(tmp_path):
    source = save_model(tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATE}))
    import_directory(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_running_again_leaves_a_complete_base_alone(tiny_source, tmp_path):
    first = import_directory(tiny_source, tmp_path / "mine")
    inode = (tmp_path / "mine" / "model.safetensors").stat().st_ino
    assert import_directory(tiny_source, tmp_path / "mine") == first
    assert (tmp_path / "mine" / "model.safetensors").stat().st_ino == inode


def test_another_source_does_not_replace_a_base(tiny_source, tmp_path):
    import_directory(tiny_source, tmp_path / "mine")
    other = save_model(tmp_path / "other")
    with pytest.raises(AlreadyExists, match="was made from directory 'tiny'"):
        import_directory(other, tmp_path / "mine")


def test_a_directory_that_is_no_base_is_not_touched(tiny_source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists, match="is not a base"):
        import_directory(tiny_source, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


DIE_WHILE_BUILDING = """
import os, sys
from pathlib import Path
from finetuned_service.bases.publish import building
with building(Path(sys.argv[1])) as scratch:
    (scratch / "model.safetensors").write_bytes(b"half")
    os._exit(9)
"""


def test_a_run_killed_half_way_leaves_no_base_and_the_next_one_succeeds(tiny_source, tmp_path):
    died = subprocess.run(
        [sys.executable, "-c", DIE_WHILE_BUILDING, str(tmp_path / "mine")], check=False, timeout=60
    )
    assert died.returncode == 9
    assert not (tmp_path / "mine").exists()
    import_directory(tiny_source, tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickles_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def lying_header(directory: Path) -> None:
    raw = bytearray((directory / "model.safetensors").read_bytes())
    (directory / "model.safetensors").write_bytes(raw[:-8])


def missing_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def extra_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors") | {"model.extra": torch.zeros(1)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def not_finite(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 16,
}
REFUSALS = {
    "pickle": (pickles_only, InvalidField, r"pickles \(pytorch_model\.bin\).*save_pretrained"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), InvalidField, "no model"),
    "no config": (lambda d: (d / "config.json").unlink(), InvalidField, r"no config\.json"),
    "config is no JSON": (
        lambda d: (d / "config.json").write_text("{"),
        InvalidField,
        r"config\.json is not JSON",
    ),
    "config cannot be read": (
        lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()),
        InvalidField,
        r"config\.json cannot be read: Is a directory",
    ),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), InvalidField, "not a JSON object"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), InvalidField, r"no tokenizer\.json"),
    "remote code": (lambda d: edit_config(d, auto_map={"AutoModel": "m.M"}), InvalidField, "auto_map"),
    "quantized": (
        lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}),
        InvalidField,
        "quantized already",
    ),
    "architecture": (lambda d: edit_config(d, model_type="mamba"), Unimplemented, "'mamba'.*llama"),
    "angles that depend on a batch": (
        lambda d: edit_config(d, rope_parameters=LONGROPE),
        Unimplemented,
        "rotary embeddings of type 'longrope'.*available: default, dynamic, linear, llama3, yarn",
    ),
    "the same under its old name": (
        lambda d: edit_config(d, rope_parameters=None, rope_scaling=LONGROPE | {"rope_type": "longrope"}),
        Unimplemented,
        "'longrope'",
    ),
    "not a causal LM": (
        lambda d: edit_config(d, architectures=["LlamaForSequenceClassification"]),
        InvalidField,
        "architectures",
    ),
    "an adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), InvalidField, "is an adapter"),
    "a lying header": (lying_header, InvalidField, "header"),
    "missing tensor": (missing_tensor, InvalidField, r"lacks tensors \(1: model\.norm\.weight\)"),
    "extra tensor": (extra_tensor, InvalidField, r"unknown tensors \(1: model\.extra\)"),
    "wrong shapes": (lambda d: edit_config(d, intermediate_size=32), InvalidField, "cannot load"),
    "no heads": (lambda d: edit_config(d, num_attention_heads=0), InvalidField, "ZeroDivisionError"),
    "a dtype that is none": (
        lambda d: edit_config(d, dtype=None, torch_dtype="float99"),
        InvalidField,
        "float99",
    ),
    "padding beyond the vocabulary": (
        lambda d: edit_config(d, pad_token_id=10**6),
        InvalidField,
        "cannot load .* AssertionError",
    ),
    "generation settings in a list": (
        lambda d: (d / "generation_config.json").write_text("[1]"),
        InvalidField,
        "TypeError",
    ),
    "impossible sizes": (lambda d: edit_config(d, num_attention_heads=3), InvalidField, "cannot load"),
    "NaN": (not_finite, InvalidField, "'model.norm.weight' holds NaN"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_fault_and_leave_nothing(tmp_path, case):
    damage, error, message = REFUSALS[case]
    source = save_model(tmp_path / "source")
    damage(source)
    with pytest.raises(error, match=message) as caught:
        import_directory(source, tmp_path / "bases" / "mine")
    assert isinstance(caught.value, FinetunedError)
    assert list((tmp_path / "bases").iterdir()) == []


def test_an_implementation_of_attention_that_is_not_here_is_not_asked_for(tmp_path):
    source = save_model(tmp_path / "source")
    plain = import_directory(source, tmp_path / "plain").digest
    edit_config(
        source, attn_implementation="flash_attention_2", output_attentions=True, output_hidden_states=True
    )
    assert import_directory(source, tmp_path / "mine").digest == plain


def test_a_head_of_its_own_is_told_of_whatever_the_source_says(tmp_path):
    """As after training a head of a tied model; transformers keeps both weights."""
    source = save_model(tmp_path / "source")
    edit_config(source, tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape) * 0.1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    base = tmp_path / "mine"
    import_directory(source, base)
    assert read_config(base)["tie_word_embeddings"] is False
    wanted = QuantizeSpec(output_base_id="x", weight_format=WeightFormat.INT8, quantize_embeddings=True)
    plan = plan_quantization(base, wanted)
    assert {"lm_head", "model.embed_tokens"} <= set(plan.stored)


def test_other_architectures_are_refused_by_name(tmp_path):
    source = save_model(tmp_path / "source", BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(Unimplemented, match=r"a base of model type 'bloom' .* available: gpt2, llama"):
        import_directory(source, tmp_path / "mine")


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidField, match="'absent' does not exist; expected a directory"):
        import_directory(tmp_path / "absent", tmp_path / "mine")


def test_an_unknown_packaged_base_leaves_no_trace(tmp_path):
    with pytest.raises(InvalidField, match="no packaged base"):
        convert_packaged("gpt-9", tmp_path / "bases" / "gpt-9")
    assert list(tmp_path.iterdir()) == []
