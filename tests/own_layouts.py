"""Adapters in the layouts that PEFT has not, with random numbers, and plain transformers changed by hand: their oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.layouts import PREFIX
from safetensors.torch import load_file, save_file
from tiny_models import TinyAdapter, checked_adapter, load_plain
from torch.nn import functional

ACTIVATIONS = {"RELU": functional.relu, "GELU": functional.gelu, "SILU": functional.silu}
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_parameters(
    directory: Path,
    base: Path,
    names: Sequence[str],
    *,
    method: str,
    seed: int,
    tied: Mapping[str, Sequence[str]] | None = None,
) -> TinyAdapter:
    """HEAD, LAYERS or FULL: parameters of the base, off by a tenth of their spread."""
    generator = torch.Generator().manual_seed(seed)
    own = load_plain(base, torch.bfloat16).state_dict()
    tensors = {
        PREFIX + name: own[name]
        + (
            0.1 * own[name].float().std().clamp(min=0.3) * torch.randn(own[name].shape, generator=generator)
        ).to(torch.bfloat16)
        for name in names
    }
    config = {"peft_type": "PARAMETERS", "method": method, "parameters": sorted(names), "tied": tied or {}}
    return _saved(directory, base, config, tensors)


def save_bottleneck(
    directory: Path,
    base: Path,
    modules: Sequence[str],
    *,
    seed: int,
    width: int = 8,
    activation: str = "GELU",
    scaling: float = 1.0,
    parallel: bool = False,
) -> TinyAdapter:
    """A bottleneck at each of these layers or parts of layers."""
    generator = torch.Generator().manual_seed(seed)
    hidden = load_plain(base, torch.bfloat16).config.hidden_size
    shapes = {"down.weight": (width, hidden), "down.bias": (width,), "up.weight": (hidden, width)}
    shapes["up.bias"] = (hidden,)
    tensors = {
        f"{PREFIX}{module}.adapter_{part}": 0.1 * torch.randn(shape, generator=generator)
        for module in modules
        for part, shape in shapes.items()
    }
    config = {
        "peft_type": "BOTTLENECK",
        "target_modules": list(modules),
        "width": width,
        "activation": activation,
        "scaling": scaling,
        "parallel": parallel,
    }
    return _saved(directory, base, config, tensors)


def _saved(
    directory: Path, base: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> TinyAdapter:
    directory.mkdir(parents=True)
    (directory / CONFIG).write_text(json.dumps(config))
    save_file(tensors, directory / WEIGHTS)
    return checked_adapter(directory, base)


def oracle(base: Path, adapter: TinyAdapter, dtype: torch.dtype) -> Any:
    """The base with the adapter in it, both in `dtype`."""
    config = json.loads((adapter.directory / CONFIG).read_text())
    stored = load_file(adapter.directory / WEIGHTS)
    tensors = {name.removeprefix(PREFIX): tensor.to(dtype) for name, tensor in stored.items()}
    model = load_plain(base, dtype)
    if config["peft_type"] == "BOTTLENECK":
        for module in config["target_modules"]:
            _add_bottleneck(model.get_submodule(module), tensors, module, config)
        return model
    if config["method"] == "HEAD":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return model


def _add_bottleneck(module: Any, tensors: dict[str, torch.Tensor], name: str, config: dict[str, Any]) -> None:
    forward = module.forward
    down, down_bias, up, up_bias = (
        tensors[f"{name}.adapter_{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )

    def changed(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        output = forward(*args, **kwargs)
        h = output[0] if isinstance(output, tuple) else output
        inner = ACTIVATIONS[config["activation"]](
            functional.linear(given if config["parallel"] else h, down, down_bias)
        )
        h = h + config["scaling"] * functional.linear(inner, up, up_bias)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    module.forward = changed
