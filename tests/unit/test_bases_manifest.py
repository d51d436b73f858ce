"""Manifests, canonical configurations and digests of bases; nothing here needs torch."""

from __future__ import annotations

import json
import struct

import pytest
from finetuned_service.bases.manifest import (
    BaseManifest,
    canonical_config,
    compute_digest,
    describe_base,
    read_manifest,
    write_manifest,
)
from finetuned_service.errors import Internal, InvalidField, NotFound
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import WeightFormat
from pydantic import ValidationError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "torch_dtype": "bfloat16",
    "transformers_version": "5.0.0",
}


def write_safetensors(path, tensors: dict[str, tuple[str, list[int], bytes]], metadata=None) -> None:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(data for _, _, data in tensors.values()))


TENSORS = {"a.weight": ("BF16", [2, 2], b"\x01\x02\x03\x04\x05\x06\x07\x08"), "b": ("F32", [1], b"\0\0\0\0")}


def make_base(directory, *, config=CONFIG, tensors=TENSORS, metadata=None):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", tensors, metadata)
    return directory


def describe(directory, name="bases/tiny") -> BaseManifest:
    return describe_base(
        directory, name=BaseName.parse(name), weight_format=WeightFormat.BF16, source="a test"
    )


def test_facts_come_from_the_header_and_the_config(tmp_path):
    manifest = describe(make_base(tmp_path / "tiny"))
    facts = (
        manifest.parameters,
        manifest.weight_bytes,
        manifest.context_tokens,
        manifest.architecture,
        manifest.root_digest,
    )
    assert facts == (5, 12, 64, "LlamaForCausalLM", manifest.digest)


def test_digest_does_not_depend_on_how_the_file_is_laid_out(tmp_path):
    first = make_base(tmp_path / "one")
    second = make_base(
        tmp_path / "two", tensors=dict(reversed(TENSORS.items())), metadata={"format": "pt", "x": "y"}
    )
    assert compute_digest(first) == compute_digest(second)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}},
        {"rms_norm_eps": 1e-6},
        {"tie_word_embeddings": True},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
)
def test_digest_changes_with_what_changes_the_numbers(tmp_path, change):
    assert compute_digest(make_base(tmp_path / "one")) != compute_digest(
        make_base(tmp_path / "two", config=CONFIG | change)
    )


@pytest.mark.parametrize(
    "change", [{"transformers_version": "6.0.0"}, {"torch_dtype": "float32"}, {"eos_token_id": 9}]
)
def test_digest_ignores_what_does_not(tmp_path, change):
    assert compute_digest(make_base(tmp_path / "one")) == compute_digest(
        make_base(tmp_path / "two", config=CONFIG | change)
    )


def test_digest_sees_one_flipped_bit(tmp_path):
    flipped = TENSORS | {"b": ("F32", [1], b"\0\0\0\x80")}
    assert compute_digest(make_base(tmp_path / "one")) != compute_digest(
        make_base(tmp_path / "two", tensors=flipped)
    )


def test_old_and_new_rotary_settings_are_the_same_configuration():
    old = {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "head_dim": None,
    }
    new = {
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
    }
    assert canonical_config(old) == canonical_config(new)


def test_a_written_manifest_reads_back_equal(tmp_path):
    directory = make_base(tmp_path / "tiny")
    manifest = describe(directory, "tenants/acme/bases/tiny")
    write_manifest(directory, manifest)
    assert read_manifest(directory) == manifest


def test_a_directory_without_manifest_is_no_base(tmp_path):
    with pytest.raises(NotFound, match="bases/tiny"):
        read_manifest(make_base(tmp_path / "tiny"))


def test_a_damaged_manifest_is_our_fault_and_shows_no_path(tmp_path):
    directory = make_base(tmp_path / "tiny")
    (directory / "base.json").write_text('{"name": "bases/tiny"')
    with pytest.raises(Internal, match="damaged") as caught:
        read_manifest(directory)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    "change", [{"name": "bases/../x"}, {"digest": "md5:0"}, {"parameters": 0}, {"owner": "me"}]
)
def test_impossible_manifests_are_refused(tmp_path, change):
    good = describe(make_base(tmp_path / "tiny")).model_dump()
    assert BaseManifest.model_validate(good).model_dump() == good
    with pytest.raises((ValidationError, InvalidField)):
        BaseManifest.model_validate(good | change)
