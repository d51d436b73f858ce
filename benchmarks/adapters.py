"""Random LoRA adapters in PEFT's layout. Their values do not matter to speed, their shapes do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def write_adapter(directory: Path, base: Path, rank: int, seed: int, *, spread: float = 0.01) -> Path:
    """A bfloat16 adapter on all seven projections whose B is not zero; kept if it is there already.

    Args:
        directory: where it is written.
        base: directory of the base, for the widths of its modules.
        rank: of all modules.
        seed: of A and B.
        spread: standard deviation of B.
    """
    if (directory / "adapter_config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, inputs, outputs in _modules(base):
        a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        b = torch.randn(outputs, rank, generator=generator) * spread
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.bfloat16()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.bfloat16()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [*ATTENTION, *FEED_FORWARD],
        "inference_mode": True,
    }
    # Last, because its presence says that the adapter is whole.
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def device_bytes(base: Path, rank: int) -> int:
    """One adapter's weights in bfloat16: its share of a memory budget, and what a step reads of it."""
    return sum(2 * rank * (inputs + outputs) for _, inputs, outputs in _modules(base))


def _modules(base: Path) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of each adapted linear module of a Llama-like base."""
    config = json.loads((base / "config.json").read_text())
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    narrow = hidden // heads * config.get("num_key_value_heads", heads)
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, narrow),
        "v_proj": (hidden, narrow),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            part = "self_attn" if name in ATTENTION else "mlp"
            yield f"model.layers.{layer}.{part}.{name}", inputs, outputs
