"""What an adapter must fit: what of a base takes low-rank updates, its sublayers, its parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetuned_service.bases.family import (
    added_modules,
    family_of,
    untrained_methods,
    weights_transposed,
    width_of,
)
from finetuned_service.bases.manifest import CONFIG_FILE, WEIGHTS_FILE, read_config, read_manifest
from finetuned_service.digests import TensorInfo, read_safetensors_header
from finetuned_service.errors import Internal, InvalidAdapterFiles
from finetuned_service.vocabulary import Family, Method

IN_BLOCK = re.compile(r".+\.\d+\..+")
"""A module inside a numbered block: neither embeddings nor the language model's head."""
_LINEAR_WEIGHT = re.compile(rf"(?P<module>{IN_BLOCK.pattern})\.weight")

_SUBLAYER = re.compile(r"(?P<sublayer>(?P<layer>.+?\.\d+)\.[^.]+)\..+")
_INNERMOST = re.compile(r"(?P<layer>.+\.\d+)\..+")
"""Of numbers within numbers the last: ALBERT's layers are in groups."""
_EMBEDDING = re.compile(r"(?:.+\.)?(?:embed_tokens|wte)\.weight")
HEAD = "lm_head"
"""The module that makes logits, in the classes of decoders that transformers has."""

_KERNEL_AXES = 4
"""Of a convolution's weight."""

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
    sublayers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Where bottlenecks stand → the width of what is returned there: layers ("model.layers.0"), and a decoder's attention
    and feed-forward, or a text encoder's last products of these.
    """
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """All weights and biases by their names in its file → shape; a tied head's weight, too."""
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Parameter → other modules that share it."""
    layers: tuple[str, ...] = ()
    """Its repeated layers in their order, by their full names; a vision model's are its stages."""
    convolutions: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """A vision model's, by name → (out_channels, in_channels, rows, columns) of the weight."""
    turned: bool = False
    """Its architecture's linear modules are transformers' Conv1D, whose weights lie as [in, out] in files."""

    @property
    def adapted(self) -> Mapping[str, tuple[int, ...]]:
        """All modules that take low-rank updates → the shape of their weight."""
        return {**self.linear_shapes, **self.convolutions}

    def saved_turned(self, module: str) -> bool:
        """Whether PEFT's files hold a module that is saved whole with its weight as [in, out]."""
        return self.turned and module in self.linear_shapes

    @classmethod
    def of_directory(cls, base_directory: Path) -> BaseGeometry:
        """Read from base.json and the header of the weights; torch-free, reads no weight.

        Raises:
            NotFound: there is no base in the directory.
            Internal: the base's files are damaged.
        """
        manifest = read_manifest(base_directory)
        try:
            shapes = cls.of_files(base_directory)
        except (InvalidAdapterFiles, OSError, ValueError, KeyError) as error:
            raise Internal(
                f"the weights of base {manifest.name} are damaged; delete the base and make it again"
            ) from error
        return replace(shapes, digest=manifest.digest, root_digest=manifest.root_digest)

    @classmethod
    def of_files(cls, base_directory: Path) -> BaseGeometry:
        """As `of_directory`, without base.json and the digests in it.

        Raises:
            InvalidAdapterFiles: the weights are no safetensors file.
        """
        config, linear = read_config(base_directory), linear_shapes(base_directory / WEIGHTS_FILE)
        width = width_of(config)
        family, layers = family_of(config), layers_of(linear)
        if family is Family.VISION:
            return _of_vision(base_directory / WEIGHTS_FILE, width, untrained_methods(config))
        parameters = _parameters(base_directory / WEIGHTS_FILE, linear)
        if family is Family.ENCODER:
            sublayers = dict.fromkeys(_summands(linear, added_modules(config)), width)
            return cls("", "", linear, width, sublayers, parameters, layers=layers)
        tied: dict[str, tuple[str, ...]] = {}
        embedding = next((name for name in parameters if _EMBEDDING.fullmatch(name)), None)
        if f"{HEAD}.weight" not in parameters and embedding is not None:
            parameters[f"{HEAD}.weight"] = parameters[embedding]
            tied = {embedding: (HEAD,)}
        sublayers = dict.fromkeys(sublayers_of(linear), width)
        return cls(
            "",
            "",
            linear,
            sublayers=sublayers,
            parameters=parameters,
            tied=tied,
            layers=layers,
            turned=weights_transposed(config),
        )


NO_GEOMETRY = BaseGeometry(digest="", root_digest="", linear_shapes={})
"""Of a base of which nothing need be known."""


def _of_vision(weights: Path, width: int, untrained: Container[Method]) -> BaseGeometry:
    parameters = _parameters(weights, {})
    convolutions = {
        name.removesuffix(".weight"): shape
        for name, shape in parameters.items()
        if len(shape) == _KERNEL_AXES
    }
    return BaseGeometry(
        "",
        "",
        {},
        width,
        parameters={} if Method.FULL in untrained else parameters,
        layers=layers_of(parameters),
        convolutions={} if Method.LORA in untrained else convolutions,
    )


def sublayers_of(linear_modules: Iterable[str]) -> list[str]:
    """The numbered layers that linear modules are in, and the two parts of each that they are in, sorted."""
    found = [_SUBLAYER.match(module) for module in linear_modules]
    return sorted({name for match in found if match for name in (match["layer"], match["sublayer"])})


def _summands(linear_modules: Iterable[str], ends: Iterable[str]) -> list[str]:
    """The linear modules with one of these dotted ends, and the numbered layers that they are in, sorted."""
    found = [name for name in linear_modules if any(name.endswith(f".{end}") for end in ends)]
    return sorted({*found, *(layer["layer"] for name in found if (layer := _INNERMOST.match(name)))})


def layers_of(modules: Iterable[str]) -> tuple[str, ...]:
    """The numbered layers that modules are in, in their order."""
    found = {match["layer"] for module in modules if (match := _SUBLAYER.match(module))}
    return tuple(sorted(found, key=lambda layer: int(layer.rpartition(".")[2])))


def _parameters(weights: Path, linear: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for info in read_safetensors_header(weights):
        module, _, part = info.name.rpartition(".")
        if part in {"weight", "bias"}:
            shapes[info.name] = linear.get(module, info.shape) if part == "weight" else info.shape
    return shapes


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
            # Quantized, weights lie as torch has them whatever the source's.
            turned = transposed and info.dtype != "I8"
            out_features, in_features = reversed(info.shape) if turned else info.shape
            shapes[found["module"]] = packed.get(found["module"], (out_features, in_features))
    return shapes


def _packed_shape(weights: Path, info: TensorInfo) -> tuple[int, int]:
    with weights.open("rb") as file:
        file.seek(info.start)
        state: Any = json.loads(file.read(info.end - info.start))
    out_features, in_features = state["shape"]
    return int(out_features), int(in_features)
