"""Which family of models a base belongs to, told from its config.json. Torch-free.

Decoders are listed in `importable.py`. Encoders and vision models are those of transformers whose forward was
compared with ours (`tests/unit/test_engine_encoders.py`); others are refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetuned_service.vocabulary import Family, Method, Task


@dataclass(frozen=True, slots=True)
class EncoderClass:
    """A class of transformers that turns an input into vectors."""

    name: str
    family: Family
    has_pooling_layer: bool = False
    """It can be built with a layer over the first token that only its own heads use; ours is built without."""
    positions_after_padding: bool = False
    """Positions count from the padding token's id + 1 on, as in fairseq."""
    added: tuple[str, ...] = ("attention.output.dense", "output.dense")
    """A text encoder's linear modules whose outputs are added to the residual stream, by dotted ends of their names."""
    untrained: Mapping[Method, str] = field(default_factory=dict[Method, str])
    """Methods that others of its family train with, and why it does not."""


_GROUPED = (
    "its convolutions are grouped, and low-rank updates are computed where each output reads all inputs"
)
_GAINS = (
    "its blocks have gains of their own (layer_scale_parameter), which no module of it computes with alone"
)

ENCODER_CLASSES: Mapping[str, EncoderClass] = {
    "albert": EncoderClass(
        "AlbertModel", Family.ENCODER, has_pooling_layer=True, added=("attention.dense", "ffn_output")
    ),
    "bert": EncoderClass("BertModel", Family.ENCODER, has_pooling_layer=True),
    "camembert": EncoderClass(
        "CamembertModel", Family.ENCODER, has_pooling_layer=True, positions_after_padding=True
    ),
    "distilbert": EncoderClass("DistilBertModel", Family.ENCODER, added=("attention.out_lin", "ffn.lin2")),
    "electra": EncoderClass("ElectraModel", Family.ENCODER),
    "roberta": EncoderClass(
        "RobertaModel", Family.ENCODER, has_pooling_layer=True, positions_after_padding=True
    ),
    "xlm-roberta": EncoderClass(
        "XLMRobertaModel", Family.ENCODER, has_pooling_layer=True, positions_after_padding=True
    ),
    "convnext": EncoderClass(
        "ConvNextModel",
        Family.VISION,
        untrained={Method.LORA: _GROUPED, Method.LAYERS: _GAINS, Method.FULL: _GAINS},
    ),
    "convnextv2": EncoderClass("ConvNextV2Model", Family.VISION, untrained={Method.LORA: _GROUPED}),
    "regnet": EncoderClass("RegNetModel", Family.VISION, untrained={Method.LORA: _GROUPED}),
    "resnet": EncoderClass("ResNetModel", Family.VISION),
}
"""By model_type."""

TRANSPOSED_TYPES = frozenset({"gpt2"})
"""Decoders whose linear weights lie as [in, out] in their file (`bases/conv1d.py`)."""

REFUSED_TYPES: Mapping[str, str] = {
    "deberta-v2": "its attention adds scores of relative positions, which packed rows do not compute",
    "megatron-bert": "its attention is code of its own, which packed rows cannot replace",
    "modernbert": "most of its layers attend to a window only",
    "mpnet": "its attention adds a bias of relative positions, which packed rows do not compute",
    "vit": "its attention over patches is not computed yet",
}
"""Known ones that are not served, and why."""

TASKS: Mapping[Family, tuple[Task, ...]] = {
    Family.DECODER: (Task.TEXT_GENERATION,),
    Family.ENCODER: (Task.FEATURE_EXTRACTION, Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION),
    Family.VISION: (Task.FEATURE_EXTRACTION, Task.IMAGE_CLASSIFICATION),
}
"""What a base of each family does."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of the model that a config.json describes."""
    found = ENCODER_CLASSES.get(str(config.get("model_type")))
    return Family.DECODER if found is None else found.family


def added_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted ends of a text encoder's linear modules whose outputs are added to the residual stream."""
    return ENCODER_CLASSES[config["model_type"]].added


def untrained_methods(config: Mapping[str, Any]) -> Mapping[Method, str]:
    """Methods that the model of a config.json does not train with, though others of its family do, and why."""
    found = ENCODER_CLASSES.get(str(config.get("model_type")))
    return {} if found is None else found.untrained


def width_of(config: Mapping[str, Any]) -> int:
    """Length of the vector that an input or a token becomes."""
    if config.get("hidden_sizes"):
        return int(config["hidden_sizes"][-1])
    return int(config.get("hidden_size") or config.get("n_embd") or config["dim"])


def weights_transposed(config: Mapping[str, Any]) -> bool:
    """Whether linear weights of the blocks lie as [in, out] in the base's file."""
    return config.get("model_type") in TRANSPOSED_TYPES


def first_position(config: Mapping[str, Any]) -> int:
    """The position id of an input's first token."""
    found = ENCODER_CLASSES.get(str(config.get("model_type")))
    return int(config["pad_token_id"]) + 1 if found is not None and found.positions_after_padding else 0


def context_of(config: Mapping[str, Any]) -> int:
    """The most tokens of an input; an image counts as one."""
    if family_of(config) is Family.VISION:
        return 1
    return int(config.get("max_position_embeddings") or config["n_positions"]) - first_position(config)
