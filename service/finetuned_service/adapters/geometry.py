"""What an adapter must fit: the linear modules of a base's repeated blocks, by name and shape."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.bases.family import weights_transposed, width_of
from finetuned_service.bases.manifest import CONFIG_FILE, WEIGHTS_FILE, read_config, read_manifest
from finetuned_service.digests import TensorInfo, read_safetensors_header
from finetuned_service.errors import Internal, InvalidAdapterFiles
from finetuned_service.vocabulary import Family

IN_BLOCK = re.compile(r".+\.\d+\..+")
"""A module inside a numbered block: neither embeddings nor the language model's head."""
_LINEAR_WEIGHT = re.compile(rf"(?P<module>{IN_BLOCK.pattern})\.weight")

_PACKED_STATE = re.compile(r"(?P<module>.+)\.weight\.quant_state\.bitsandbytes__(?:nf4|fp4)")
"""Beside a packed 4-bit weight, bitsandbytes stores its true shape as JSON in a tensor of bytes."""


@dataclass(frozen=True, slots=True)
class BaseGeometry:
    """A base as adapters see it."""

    digest: str
    root_digest: str
    linear_shapes: Mapping[str, tuple[int, int]]
    """Module name ("model.layers.0.mlp.up_proj") → (out_features, in_features)."""
    width: int = 0
    """Length of the vectors that it makes of an input, which a head is over; 0 if it takes no heads."""

    @classmethod
    def of_directory(cls, base_directory: Path) -> BaseGeometry:
        """Read from base.json and the header of the weights; torch-free, reads no weight.

        Raises:
            NotFound: there is no base in the directory.
            Internal: the base's files are damaged.
        """
        manifest = read_manifest(base_directory)
        try:
            shapes = linear_shapes(base_directory / WEIGHTS_FILE)
        except (InvalidAdapterFiles, OSError, ValueError, KeyError) as error:
            raise Internal(
                f"the weights of base {manifest.name} are damaged; delete the base and make it again"
            ) from error
        takes_heads = manifest.family is not Family.DECODER
        width = width_of(read_config(base_directory)) if takes_heads else 0
        return cls(manifest.digest, manifest.root_digest, shapes, width)


def linear_shapes(weights: Path) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear module in a numbered block, packed 4-bit ones included.

    The config.json beside it says how they lie; without one they lie as torch has them.

    Raises:
        InvalidAdapterFiles: the file is no safetensors file.
    """
    infos = read_safetensors_header(weights)
    described = (weights.parent / CONFIG_FILE).is_file()
    transposed = described and weights_transposed(read_config(weights.parent))
    packed = {
        found["module"]: _packed_shape(weights, info)
        for info in infos
        if (found := _PACKED_STATE.fullmatch(info.name))
    }
    shapes: dict[str, tuple[int, int]] = {}
    for info in infos:
        found = _LINEAR_WEIGHT.fullmatch(info.name)
        if found is not None and len(info.shape) == 2:
            out_features, in_features = reversed(info.shape) if transposed else info.shape
            shapes[found["module"]] = packed.get(found["module"], (out_features, in_features))
    return shapes


def _packed_shape(weights: Path, info: TensorInfo) -> tuple[int, int]:
    with weights.open("rb") as file:
        file.seek(info.start)
        state: Any = json.loads(file.read(info.end - info.start))
    out_features, in_features = state["shape"]
    return int(out_features), int(in_features)
