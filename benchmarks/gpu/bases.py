"""Bases of known shapes with random weights: speed on a GPU does not look at values, and nothing must be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
"""SmolLM2-135M's own, and Llama 3.2 1B's."""


def random_base(directory: Path, shape: str, device: str) -> Path:
    """A bfloat16 base in `directory`, kept if it is there already."""
    if (directory / "config.json").exists():
        return directory
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to("cpu").save_pretrained(directory)
    return directory
