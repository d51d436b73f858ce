"""Which bases the native decoder computes, told from their modules; everything else takes the plain path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetuned_service.bases.importable import ROPE_TYPES
from finetuned_service.engine.native.library import SITES

_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Decoders whose forward is the one that `source/forward.h` spells out."""
_MOST_HEAD_DIM = 256


class NotNative(Exception):
    """The native decoder does not compute this base, and why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a decoder, in the words of transformers' configurations."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float


def check_geometry(model: Any) -> Geometry:
    """The sizes of a causal LM that the native decoder computes exactly.

    Args:
        model: a transformers model on the CPU.

    Raises:
        NotNative: with the first reason found.
    """
    config = model.config
    _require(config.model_type in _MODEL_TYPES, f"its architecture is {config.model_type}")
    _require(model.dtype == torch.bfloat16, f"its weights are {model.dtype}")
    _require(model.device.type == "cpu", f"it is on {model.device}")
    _require(config.hidden_act in {"silu", "swish"}, f"its activation is {config.hidden_act}")
    rope = model.get_decoder().rotary_emb.rope_type
    _require(rope in ROPE_TYPES, f"its rotary embedding is of type {rope}")
    heads = int(config.num_attention_heads)
    geometry = Geometry(
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        intermediate=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(config.num_key_value_heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=int(config.vocab_size),
        context=int(config.max_position_embeddings),
        epsilon=float(config.rms_norm_eps),
    )
    _require(
        geometry.head_dim % 16 == 0 and geometry.head_dim <= _MOST_HEAD_DIM,
        f"its heads have {geometry.head_dim} dimensions, not a multiple of 16 up to {_MOST_HEAD_DIM}",
    )
    _require(geometry.hidden % 16 == 0 and geometry.intermediate % 16 == 0, "its width is no multiple of 16")
    for layer in model.get_decoder().layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in parent.named_children():
                if name in SITES:
                    _require(
                        type(module) is nn.Linear and module.weight.dtype == torch.bfloat16,
                        f"its {name} is {type(module).__name__} of {module.weight.dtype}",
                    )
    return geometry


def _require(fulfilled: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not fulfilled:
        raise NotNative(otherwise)
