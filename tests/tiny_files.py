"""Files of tiny bases and adapters, written with the standard library alone.

For tests that look at files and never compute: no torch, and quick to import in another process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

LINEAR_SHAPES: Mapping[str, tuple[int, int]] = {
    "model.layers.0.self_attn.q_proj": (4, 4),
    "model.layers.0.mlp.up_proj": (6, 4),
}
"""Module name → (out_features, in_features) of the tiny base."""


def write_safetensors(path: Path, tensors: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Float32 tensors: name → (shape, values)."""
    header: dict[str, object] = {}
    data = b""
    for name, (shape, values) in tensors.items():
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, len(data)]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write_base(directory: Path, *, fill: float = 0.5) -> Path:
    """config.json and model.safetensors of a base; every weight is `fill`."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4,
        "max_position_embeddings": 256,
    }
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {
        f"{module}.weight": (shape, [fill] * (shape[0] * shape[1])) for module, shape in LINEAR_SHAPES.items()
    }
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def write_adapter(directory: Path, *, fill: float = 0.25, rank: int = 2) -> Path:
    """A LoRA adapter of the tiny base in PEFT's layout; every number in A and B is `fill`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({module.rpartition(".")[2] for module in LINEAR_SHAPES}),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors: dict[str, tuple[Sequence[int], Sequence[float]]] = {}
    for module, (out_features, in_features) in LINEAR_SHAPES.items():
        for side, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
            values = [fill] * (shape[0] * shape[1])
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = (shape, values)
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    return directory
