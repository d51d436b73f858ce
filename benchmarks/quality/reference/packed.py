"""Causal language models with packed weights: NF4 as transformers and bitsandbytes read it, INT8 by what it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

_SCALE = "_scale"


def is_packed(base: Path) -> bool:
    return "quantization_config" in json.loads((base / "config.json").read_text())


def load_packed(base: Path) -> Any:
    """In the dtype of what is not packed."""
    if (
        json.loads((base / "config.json").read_text())["quantization_config"]["quant_method"]
        == "bitsandbytes"
    ):
        return AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    tensors = load_file(base / "model.safetensors")
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(_SCALE)}
    for name, scale in scales.items():
        weight = name.removesuffix(_SCALE)
        tensors[weight] = tensors[weight].to(scale.dtype) * scale[:, None]
    config: Any = AutoConfig.from_pretrained(base)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model


def rest(model: nn.Module) -> None:
    """Out of training, but for 4-bit modules: in eval mode bitsandbytes writes over their weights, and what trains through
    those loses its gradient.
    """
    for module in model.modules():
        # By its name: who loads nothing packed, as TRL's environment, has no bitsandbytes.
        module.training = type(module).__module__.startswith("bitsandbytes.")
