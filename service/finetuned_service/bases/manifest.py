"""What a base says about itself (`base.json`), and the digest that identifies it.

Torch-free: everything is read from the safetensors header and `config.json`. Does not judge whether
a model class can be served; `bases/convert.py` does that when a base comes in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from finetuned_service.bases.family import context_of, family_of, first_position
from finetuned_service.digests import read_safetensors_header, safetensors_digest
from finetuned_service.errors import Internal, NotFound
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import Family, Value, WeightFormat

MANIFEST_FILE = "base.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

NUMERIC_KEYS = frozenset({
    # which computation it is
    "model_type", "architectures", "layer_types", "is_decoder", "use_bidirectional_attention",
    # sizes
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "n_embd", "n_head", "n_inner", "n_layer", "tie_word_embeddings",
    "attention_bias", "mlp_bias",
    # positions
    "max_position_embeddings", "n_positions", "original_max_position_embeddings", "rope_parameters",
    "rope_theta", "rope_scaling", "partial_rotary_factor", "sliding_window", "use_sliding_window",
    "max_window_layers", "no_rope_layers", "no_rope_layer_interval",
    # functions and scales
    "hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps",
    "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    # encoders
    "activation", "dim", "embedding_size", "hidden_dim", "hidden_group_num", "inner_group_num", "n_heads",
    "n_layers", "num_hidden_groups", "pooling", "sinusoidal_pos_embds", "type_vocab_size",
    # vision
    "depths", "downsample_in_bottleneck", "downsample_in_first_stage", "groups_width", "hidden_sizes",
    "image_input", "layer_type", "num_channels", "num_stages", "patch_size",
    # formats
    "quantization_config",
})  # fmt: skip
"""Keys of a config.json that change the numbers a model computes. Left out on purpose: dtypes (each
tensor's is in the digest already), token ids, dropouts (none at inference), versions and names."""


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that identifies a base, in one spelling.

    Keys without a value are dropped, and rotary settings come in transformers 5's form
    (`rope_parameters`), whichever form the file has.
    """
    canonical = {key: config[key] for key in sorted(NUMERIC_KEYS & set(config)) if config[key] is not None}
    if (first := first_position(config)) > 0:
        canonical["first_position"] = first
    rope: dict[str, Any] = {"rope_type": "default"}
    theta = canonical.pop("rope_theta", None)
    if theta is not None:
        rope["rope_theta"] = theta
    for key in ("rope_scaling", "rope_parameters"):
        rope.update(canonical.pop(key, {}))
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    if "rope_theta" in rope:
        canonical["rope_parameters"] = rope
    return canonical


def _legal_name(name: str) -> str:
    return str(BaseName.parse(name))


DIGEST_PATTERN = r"sha256:[0-9a-f]{64}"
Digest = Annotated[str, Field(pattern=f"^{DIGEST_PATTERN}$")]


class BaseManifest(Value):
    """base.json: facts about a base that are expensive or impossible to find again from its files."""

    name: Annotated[str, AfterValidator(_legal_name)]
    """`bases/{base}` or `tenants/{tenant}/bases/{base}`."""
    digest: Digest
    root_digest: Digest
    """The digest of the base this one was derived from, transitively; its own if from none."""
    architecture: str
    """The model class in transformers."""
    family: Family = Family.DECODER
    weight_format: WeightFormat
    """Of the linear weights."""
    parameters: int = Field(ge=1)
    """Weights of the model, each counted once however it is stored or tied."""
    weight_bytes: int = Field(ge=1)
    """All tensors as stored, scales of quantized ones included."""
    context_tokens: int = Field(ge=1)
    """The longest input, with its reply where there is one; 1 for images."""
    source: str
    """Where it came from: a package, an imported directory, another base."""
    recipe: str = ""
    """How it was derived."""
    lineage_note: str = ""
    """What a reader of quality figures must know about where the weights have been."""
    create_time: datetime


def read_config(directory: Path) -> dict[str, Any]:
    """The whole config.json of a base in the store."""
    config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_bytes())
    return config


def compute_dtype(directory: Path) -> str:
    """In what a base in the store computes, by torch's name: what it is stored in, or a packed one was made from."""
    found: str = read_config(directory)["dtype"]
    return found


def compute_digest(directory: Path) -> str:
    """The base's digest from its files as they are now; reads every byte of the weights."""
    return safetensors_digest([directory / WEIGHTS_FILE], canonical_config(read_config(directory)))


def describe_base(
    directory: Path,
    *,
    name: BaseName,
    weight_format: WeightFormat,
    source: str,
    parameters: int | None = None,
    root_digest: str | None = None,
    recipe: str = "",
    lineage_note: str = "",
) -> BaseManifest:
    """The manifest of a base whose other files lie in `directory` already.

    Args:
        directory: holds config.json and model.safetensors.
        name: under which it will be listed.
        weight_format: of the linear weights.
        source: where it came from.
        parameters: None counts the elements of the stored tensors, which is right unless they are packed.
        root_digest: None for a base that was derived from no other.
        recipe: how it was derived.
        lineage_note: see `BaseManifest`.
    """
    config = read_config(directory)
    infos = read_safetensors_header(directory / WEIGHTS_FILE)
    digest = compute_digest(directory)
    if parameters is None:
        parameters = sum(_elements(info.shape) for info in infos)
    return BaseManifest(
        name=str(name),
        digest=digest,
        root_digest=root_digest or digest,
        architecture=config["architectures"][0],
        family=family_of(config),
        weight_format=weight_format,
        parameters=parameters,
        weight_bytes=sum(info.end - info.start for info in infos),
        context_tokens=context_of(config),
        source=source,
        recipe=recipe,
        lineage_note=lineage_note,
        create_time=datetime.now(UTC),
    )


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for dim in shape:
        elements *= dim
    return elements


def read_manifest(directory: Path) -> BaseManifest:
    """The manifest of the base in `directory`.

    Raises:
        NotFound: if there is none; a directory without base.json is not a base.
        Internal: if base.json is not what this service writes.
    """
    try:
        raw = (directory / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound.resource(f"bases/{directory.name}") from error
    try:
        return BaseManifest.model_validate_json(raw)
    except ValidationError as error:
        raise Internal(
            f"{MANIFEST_FILE} of base {directory.name!r} is damaged ({error.error_count()} faults); "
            "restore it, or delete the base and make it again"
        ) from error


def write_manifest(directory: Path, manifest: BaseManifest) -> None:
    """Write base.json; the last file of a base, before its directory is published."""
    (directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
