"""What packed weights stand for, by hand from the stored file in float64: read with safetensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from finetuned_service.bases.manifest import read_config
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.names import BaseName
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.quantization.store import store_quantized
from finetuned_service.vocabulary import WeightFormat
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

# Appendix E of QLoRA (https://arxiv.org/abs/2305.14314).
NF4_LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=torch.float64,
)


def by_hand(parts: Mapping[str, Tensor]) -> Tensor:
    """The NF4 weight `[out, in]`, float64, of the tensors that are stored for it, by what follows the module's name."""
    state = json.loads(bytes(parts["weight.quant_state.bitsandbytes__nf4"].tolist()))
    shape = torch.Size(state["shape"])
    values = parts["weight"].flatten()
    levels = torch.stack((values >> 4, values & 15), dim=1).flatten()[: shape.numel()]
    of_scales = parts["weight.nested_absmax"].double().repeat_interleave(state["nested_blocksize"])
    codes = parts["weight.absmax"]
    scales = parts["weight.nested_quant_map"].double()[codes.long()] * of_scales[: codes.numel()]
    scales = (scales + state["nested_offset"]).repeat_interleave(state["blocksize"])
    return (NF4_LEVELS[levels.long()] * scales[: shape.numel()]).reshape(shape)


def unpacked(packed: Path) -> dict[str, Tensor]:
    """The weights `[out, in]` of all packed modules of a base, float64, by the modules' names."""
    tensors = load_file(packed / "model.safetensors")
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if tensor.dtype is torch.int8:
            found[module] = tensor.double() * tensors[f"{name}_scale"].double()[:, None]
        elif name.endswith(".weight") and tensor.dtype is torch.uint8:
            prefix = f"{module}."
            parts = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            found[module] = by_hand(parts)
    return found


def unpacked_model(source: Path, packed: Path, dtype: torch.dtype = torch.float64) -> Any:
    """Plain transformers on the source, in `dtype`, with what the packed weights stand for in the place of its own."""
    plain: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager").eval()
    turned = read_config(source)["model_type"] == "gpt2"
    with torch.no_grad():
        for name, weight in unpacked(packed).items():
            module = plain.get_submodule(name)
            before = module.weight.clone()
            module.weight.copy_(weight.T if turned and "Conv1D" in type(module).__name__ else weight)
            # The largest rounding error of NF4 is 15% of a block's largest weight.
            assert 0 < (module.weight - before).norm() / before.norm() < 0.15, name
    return plain


def pack(source: Path, target: Path, weight_format: str, *, embeddings: bool = False) -> Path:
    """Quantize a base into the new directory `target`."""
    spec = QuantizeSpec(
        output_base_id="packed", weight_format=WeightFormat(weight_format), quantize_embeddings=embeddings
    )
    target.mkdir(parents=True)
    plan = plan_quantization(source, spec)
    store_quantized(source, target, plan, spec.weight_format, BaseName("packed", "acme"), lambda: None)
    return target
